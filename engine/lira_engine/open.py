"""Open the five stages of a bundle for one target."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.cuda.driver import DriverName
from lira_engine.engines.accuracy import WrongOutput, check_stage_outputs
from lira_engine.engines.held import holding, replacing_told
from lira_engine.engines.origin import origin, remember_checked, require_harmless
from lira_engine.engines.record import Build
from lira_engine.engines.replay import stage_runs
from lira_engine.engines.runner import Engines, LlmRunner, StageRunner
from lira_engine.engines.target import Opener, Target
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

    Engines that this user did not build run the bundle's check vectors first, once, unless a trusted key
    signed them; `Engines.remark` says so.
    Raises LiraError, with the command that mends it, if they are missing, stale, altered, foreign, wrong or
    not verified, and for a stranger's engines that are code; BundleChanged if a file changes meanwhile.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    with replacing_told(bundle.engine_folder(target, precision)) as before:
        opener, files, remark = _prepared(bundle, target, precision, threads, unverified, driver=driver)
        engines = open_files(opener, files, target, precision, remark, _beside(target))
        return holding(engines, bundle, opener, before, portable=target == PORTABLE.name)


def open_unchecked(
    bundle: Bundle, target: str, precision: str, threads: int | None = None, driver: DriverName = "auto"
) -> Engines:
    """Open engines as `open_engines` does, for a caller that checks them itself. Raises LiraError, as that
    does, for a stranger's engines that are code."""
    chosen = target_named(target).with_driver(driver)
    with replacing_told(bundle.engine_folder(target, precision)) as before:
        opener, files, build, _ = _own_or_harmless(bundle, chosen, precision, threads)
        engines = open_files(opener, files, target, precision, forced_remark(build), _beside(target))
        return holding(engines, bundle, opener, before, portable=False)


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
) -> LlmRunner:
    """Open only the language model. Raises LiraError as `open_engines`."""
    opener, files, _ = _prepared(bundle, target, precision, threads, unverified)
    return opener.llm(files["llm"])


def open_stage(
    bundle: Bundle,
    stage: str,
    target: str,
    precision: str,
    threads: int | None = None,
    unverified: bool = False,
) -> StageRunner:
    """Open one stage that is not the language model, as `open_llm` does that."""
    opener, files, _ = _prepared(bundle, target, precision, threads, unverified)
    return opener.stage(stage, files[stage])


def _prepared(
    bundle: Bundle,
    target: str,
    precision: str,
    threads: int | None,
    unverified: bool,
    driver: DriverName = "auto",
) -> tuple[Opener, dict[str, Path], str]:
    """Return the opener of the engines, the file of each stage, and what the user must know about them."""
    if target == PORTABLE.name:
        PORTABLE.with_driver(driver).check_precision(precision)
        opener = PORTABLE.opener(bundle, precision, threads=threads)
        return opener, {stage: bundle.stage_file(stage) for stage in STAGES}, ""
    chosen = target_named(target).with_driver(driver)
    opener, files, build, known = _own_or_harmless(bundle, chosen, precision, threads)
    if not unverified:
        require_verified(build, chosen, bundle.path)
    remarks = [forced_remark(build)]
    if not known:
        remarks.append(_check_once(bundle, chosen, build, opener, files))
    return opener, files, "; ".join(filter(None, remarks))


def _own_or_harmless(
    bundle: Bundle, target: Target, precision: str, threads: int | None
) -> tuple[Opener, dict[str, Path], Build, bool]:
    """Return the opener, the file of each stage, the record, and whether it is known where they come from."""
    build = usable_build(bundle, target, precision)
    folder = bundle.engine_folder(target.name, precision)
    found = origin(build, target, folder)
    require_harmless(found, build, target, bundle.path)
    opener = target.opener(bundle, precision, build.settled, threads)
    return opener, {stage: folder / target.file(stage) for stage in STAGES}, build, bool(found.known)


def _check_once(
    bundle: Bundle, target: Target, build: Build, opener: Opener, files: Mapping[str, Path]
) -> str:
    """Run a stranger's engines on the bundle's check vectors, and return the remark about them. Raises
    LiraError if an output is wrong."""
    with open_files(opener, files, build.target, build.precision, beside=_beside(target.name)) as engines:
        for stage in STAGES:
            vectors = bundle.check_vectors(stage)
            for found in stage_runs(engines, stage, vectors):
                what = f"the {target.name} engine of {stage}, which was not built here,"
                try:
                    check_stage_outputs(what, build.precisions[stage], found, vectors)
                except WrongOutput as error:
                    command = target.build_command(bundle.path, build.precision, build.options)
                    raise WrongOutput(f"{error}; run `{command}`") from None
    return remember_checked(build)


def _beside(target: str) -> bool:
    return target == PORTABLE.name or not target_named(target).on_gpu
