"""Open the five stages of a bundle for one target."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import Verify
from lira_engine.bundle.manifest import STAGES
from lira_engine.cuda.driver import DriverName
from lira_engine.engines.held import holding, replacing_told
from lira_engine.engines.runner import Engines, LlmRunner, StageRunner
from lira_engine.engines.target import Opener
from lira_engine.engines.usable import forced_remark, usable_build
from lira_engine.engines.verified import require_verified
from lira_engine.targets import PORTABLE, target_named


def open_engines(
    bundle: Bundle | Path | str,
    target: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
    unverified: bool = False,
    driver: DriverName = "auto",
) -> Engines:
    """Open engines that `lira-edge build` made for `target`, or the portable graphs as they are ("portable").

    `threads` is for engines on the CPU; None takes one for each fast core. `unverified` also opens
    engines that `lira-edge verify` did not check on this machine's GPU. `driver`: the package that makes
    CUDA's calls for engines of TensorRT.
    Raises LiraError, with the command that mends it, if they are missing, stale, altered, foreign or not
    verified, and BundleChanged if a file changes meanwhile.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    portable = target == PORTABLE.name
    with replacing_told(bundle.engine_folder(target, precision)) as before:
        opener, files, remark = _prepared(bundle, target, precision, threads, unverified, driver=driver)
        beside = portable or not target_named(target).on_gpu
        engines = open_files(opener, files, target, precision, remark, beside)
        return holding(engines, bundle, opener, before, portable)


def open_files(
    opener: Opener,
    files: Mapping[str, Path],
    target: str,
    precision: str,
    remark: str = "",
    beside: bool = False,
) -> Engines:
    """Open the file of each stage. `beside`: the language model beside the other stages, which takes half of
    the time on two cores. Raises LiraError if one cannot be opened; then none stays open."""
    with ExitStack() as opened:

        def others() -> dict[str, StageRunner]:
            return {
                stage: opened.enter_context(opener.stage(stage, files[stage]))
                for stage in STAGES
                if stage != "llm"
            }

        with ThreadPoolExecutor(1) as worker:  # it has ended before the stages are closed
            found = worker.submit(others) if beside else None
            stages = others() if found is None else {}
            llm = opened.enter_context(opener.llm(files["llm"]))
            if found is not None:
                stages = found.result()
        # A pass of several rows has other roundings, and fp32 engines keep theirs to the last bit.
        draft_costs = () if precision == "fp32" else opener.draft_costs
        engines = Engines(
            target=target,
            precision=precision,
            llm=llm,
            remark=remark,
            draft_costs=draft_costs,
            cuda_calls=opener.cuda_calls,
            tiles_at_once=opener.tiles_at_once,
            held=None,
            **stages,
        )
        opened.pop_all()
    return engines


def open_llm(
    bundle: Bundle,
    target: str,
    precision: str,
    threads: int | None = None,
    unverified: bool = False,
    verify: Verify = "hashes",
) -> LlmRunner:
    """Open only the language model; `verify`: see bundle.integrity. Raises LiraError as `open_engines`."""
    opener, files, _ = _prepared(bundle, target, precision, threads, unverified, verify)
    return opener.llm(files["llm"])


def open_stage(
    bundle: Bundle,
    stage: str,
    target: str,
    precision: str,
    threads: int | None = None,
    unverified: bool = False,
    verify: Verify = "hashes",
) -> StageRunner:
    """Open one stage that is not the language model, as `open_llm` does that."""
    opener, files, _ = _prepared(bundle, target, precision, threads, unverified, verify)
    return opener.stage(stage, files[stage])


def _prepared(
    bundle: Bundle,
    target: str,
    precision: str,
    threads: int | None,
    unverified: bool,
    verify: Verify = "hashes",
    driver: DriverName = "auto",
) -> tuple[Opener, dict[str, Path], str]:
    """Return the opener of the engines, the file of each stage, and what the user must know about them."""
    if target == PORTABLE.name:
        PORTABLE.with_driver(driver).check_precision(precision)
        opener = PORTABLE.opener(bundle, precision, threads=threads)
        return opener, {stage: bundle.stage_file(stage) for stage in STAGES}, ""
    chosen = target_named(target).with_driver(driver)
    build = usable_build(bundle, chosen, precision, verify)
    if not unverified:
        require_verified(build, chosen, bundle.path)
    folder = bundle.engine_folder(target, precision)
    opener = chosen.opener(bundle, precision, build.settled, threads)
    return opener, {stage: folder / chosen.file(stage) for stage in STAGES}, forced_remark(build)
