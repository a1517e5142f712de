"""Open the five stages of a bundle for one target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.record import Build, build_command, check_target, engine_file, usable_build
from lira_engine.engines.runner import Engines, LlmRunner, StageRunner
from lira_engine.engines.verified import require_verified
from lira_engine.errors import LiraError
from lira_engine.trt.flavour import TARGETS as TENSORRT_TARGETS


def open_engines(
    bundle: Bundle | Path | str,
    target: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
    unverified: bool = False,
) -> Engines:
    """Engines that `lira-edge build` made for `target`, or the portable graphs as they are ("portable").

    `threads` is for those that run on the CPU; None leaves the number to ONNX Runtime. `unverified` opens
    engines for a GPU that `lira-edge verify` did not check on this one.
    Raises LiraError where they are missing, stale, altered, foreign or not verified, with the command that
    mends it.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    if target == "portable":
        if precision != "fp32":
            raise LiraError(f"the portable graphs have precision fp32, not {precision!r}")
        files = {stage: bundle.stage_file(stage) for stage in STAGES}
    else:
        check_target(target, precision)
        build = usable_build(bundle, target, precision)
        if not unverified:
            require_verified(build, bundle.path)
        folder = bundle.engine_folder(target, precision)
        files = {stage: folder / engine_file(target, stage) for stage in STAGES}
    stage: Callable[[str, Path], StageRunner] = partial(open_stage, bundle, threads=threads)
    llm: Callable[[Path], LlmRunner] = partial(open_llm, bundle, target=target, threads=threads)
    if target in TENSORRT_TARGETS:
        stage, llm = _tensorrt(bundle, build)
    elif target == "cuda":
        stage, llm = _cuda(bundle, build.options, threads)
    with ExitStack() as opened:
        engines = Engines(
            target=target,
            precision=precision,
            semantic_encoder=opened.enter_context(stage("semantic_encoder", files["semantic_encoder"])),
            pixel_encoder=opened.enter_context(stage("pixel_encoder", files["pixel_encoder"])),
            sefe=opened.enter_context(stage("sefe", files["sefe"])),
            llm=opened.enter_context(llm(files["llm"])),
            pixel_decoder=opened.enter_context(stage("pixel_decoder", files["pixel_decoder"])),
        )
        opened.pop_all()
    return engines


def open_stage(bundle: Bundle, name: str, file: Path, threads: int | None) -> StageRunner:
    """One stage, from a portable or a built file. The language model takes and returns its whole cache."""
    from lira_engine.ort.session import OrtStage

    return OrtStage(name, file, bundle.manifest.stages[name], threads)


def open_llm(bundle: Bundle, file: Path, target: str, threads: int | None) -> LlmRunner:
    """The language model, from a portable or a built file."""
    from lira_engine.ort.llm import open_llm

    return open_llm(file, bundle.manifest.model, target, threads)


def _cuda(
    bundle: Bundle, options: Mapping[str, Any], threads: int | None
) -> tuple[Callable[[str, Path], StageRunner], Callable[[Path], LlmRunner]]:
    """What opens a stage and the language model on the GPU, with the provider that they were built for."""
    from lira_engine.ort.device import cuda_device
    from lira_engine.ort.llm import open_llm
    from lira_engine.ort.session import OrtStage

    device, manifest = cuda_device(options["provider"], options["allow_fallback"]), bundle.manifest
    return (
        lambda name, file: OrtStage(name, file, manifest.stages[name], threads, device=device),
        lambda file: open_llm(file, manifest.model, "cuda", threads, device),
    )


def _tensorrt(
    bundle: Bundle, build: Build
) -> tuple[Callable[[str, Path], StageRunner], Callable[[Path], LlmRunner]]:
    """What opens a stage and the language model on the GPU: all five share its one context."""
    from lira_engine.trt.driver import open_driver
    from lira_engine.trt.flavour import load_flavour
    from lira_engine.trt.opening import open_trt_llm, open_trt_stage
    from lira_engine.trt.plugins import load_plugins

    flavour, driver = load_flavour(build.target), open_driver(build.target)
    # Without the build's options: where the GPU is another one, so are they.
    mend = f"run `{build_command(bundle.path, build.target, build.precision)} --force` on this machine"
    manifest = bundle.manifest
    if build.options.get("sampling") == "plugin":
        load_plugins(flavour, mend)
    return (
        partial(open_trt_stage, manifest, flavour=flavour, driver=driver, mend=mend),
        partial(open_trt_llm, manifest, flavour=flavour, driver=driver, mend=mend),
    )
