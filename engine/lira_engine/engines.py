"""Open the five stages of a bundle for one target."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from lira_engine.bundle import Bundle
from lira_engine.engine_folder import check_target, engine_file, usable_build
from lira_engine.errors import LiraError
from lira_engine.manifest import STAGES
from lira_engine.runner import Engines, LlmRunner, StageRunner


def open_engines(
    bundle: Bundle | Path | str, target: str = "cpu", precision: str = "fp32", threads: int | None = None
) -> Engines:
    """Engines that `lira-edge build` made for `target`, or the portable graphs as they are ("portable").

    Raises LiraError where they are missing, stale, altered or foreign, with the command that mends it.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    if target == "portable":
        if precision != "fp32":
            raise LiraError(f"the portable graphs have precision fp32, not {precision!r}")
        files = {stage: bundle.stage_file(stage) for stage in STAGES}
    else:
        check_target(target, precision)
        usable_build(bundle, target, precision)
        folder = bundle.engine_folder(target, precision)
        files = {stage: folder / engine_file(stage) for stage in STAGES}
    with ExitStack() as opened:
        stage = partial(open_stage, bundle, threads=threads)
        engines = Engines(
            target=target,
            precision=precision,
            semantic_encoder=opened.enter_context(stage("semantic_encoder", files["semantic_encoder"])),
            pixel_encoder=opened.enter_context(stage("pixel_encoder", files["pixel_encoder"])),
            sefe=opened.enter_context(stage("sefe", files["sefe"])),
            llm=opened.enter_context(open_llm(bundle, files["llm"], target, threads)),
            pixel_decoder=opened.enter_context(stage("pixel_decoder", files["pixel_decoder"])),
        )
        opened.pop_all()
    return engines


def open_stage(bundle: Bundle, name: str, file: Path, threads: int | None) -> StageRunner:
    """One stage, from a portable or a built file. The language model takes and returns its whole cache."""
    from lira_engine.ort import OrtStage

    return OrtStage(name, file, bundle.manifest.stages[name], threads)


def open_llm(bundle: Bundle, file: Path, target: str, threads: int | None) -> LlmRunner:
    """The language model, from a portable or a built file."""
    from lira_engine.llm_ort import open_llm

    return open_llm(file, bundle.manifest.model, target, threads)
