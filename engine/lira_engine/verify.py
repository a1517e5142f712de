"""Check built engines on the device that will run them, and remember the result.

A finished build proves little: a fused kernel can be right on one GPU and wrong on the next. The engines run
the bundle's check vectors, then give one short answer, which the caller's `ask` asks for and checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.cuda.driver import DriverName
from lira_engine.engines import lowered_outputs
from lira_engine.engines.accuracy import Checked, check_stage_outputs, worst
from lira_engine.engines.judgement import Candidate, Judgement, judged_flips
from lira_engine.engines.near_ties import Flip, flip_rows
from lira_engine.engines.precision import precision_named
from lira_engine.engines.record import Build, Verified, read_build
from lira_engine.engines.replay import stage_runs
from lira_engine.engines.runner import Engines
from lira_engine.engines.usable import usable_build
from lira_engine.engines.verified import keep_verified
from lira_engine.errors import LiraError
from lira_engine.inspect import Tables
from lira_engine.open import open_unchecked
from lira_engine.targets import target_named
from lira_engine.trust.known_builds import now

Progress = Callable[[str], None]
"""Called with what is checked now."""


@dataclass(frozen=True)
class CheckedAnswer:
    """The result of `Ask`.

    Attributes:
        tokens: steps that chose a token; 0 where the context is too short for the answer.
        agree: at how many of them the fp32 language model, run by ONNX Runtime on the same embeddings, has
            the same argmax; None where it cannot run here.
        cutting: error of the logits (see engines.accuracy) against those of the same rows in one pass.
    """

    tokens: int
    agree: int | None = None
    cutting: float = 0.0


Ask = Callable[[Bundle, Engines, str, "int | None"], CheckedAnswer]
"""(bundle, engines, precision of the language model, threads): asks for an answer and checks it. Raises
LiraError for a wrong one."""


def verify_engines(
    bundle: Bundle | Path | str,
    target: str,
    precision: str,
    threads: int | None = None,
    progress: Progress = lambda what: None,
    *,
    ask: Ask,
    driver: DriverName = "auto",
) -> Verified:
    """Check the built engines of a bundle on this machine's device, and remember the result in the user's
    data folder: the bundle stays as it is.

    `driver`: see `open_engines`.

    Raises LiraError if the engines are missing, stale, altered or foreign, if the device is missing, or if an
    output is wrong; then they no longer count as verified.
    """
    chosen = target_named(target)
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    build = usable_build(bundle, chosen, precision)
    setting = chosen.setting()
    folder = bundle.engine_folder(target, precision)
    if build.verified is not None or build.known.checked:  # a wrong engine may also crash this process
        keep_verified(build, None)
    with open_unchecked(bundle, target, precision, threads, driver) as engines:
        errors: dict[str, dict[str, float]] = {}
        lowered: dict[str, float] = {}
        flips: dict[str, tuple[Flip, ...]] = {}
        for stage in STAGES:
            progress(stage)
            vectors, what = bundle.check_vectors(stage), f"the {target} engine of {stage}"
            checked, near = Checked({}), Checked({})
            for found in stage_runs(engines, stage, vectors):
                checked = worst(checked, check_stage_outputs(what, build.precisions[stage], found, vectors))
                if lowered_outputs.file_name(stage) in build.files:
                    again = lowered_outputs.check(what, found, lowered_outputs.read(folder, stage))
                    near = worst(near, Checked(again))
            errors[stage] = checked.errors
            if checked.flips:
                flips[stage] = checked.flips
            lowered |= {f"{stage}.{output}": error for output, error in near.errors.items()}
        progress("answer")
        answer = ask(bundle, engines, build.precisions["llm"], threads)
    judgement = _judged(bundle, build, flips, threads, progress, driver) if flips else None
    placement = chosen.placement(bundle, build, lambda stage: progress(f"{stage}: placement"))
    result = Verified(
        now(),
        setting,
        errors,
        answer.tokens,
        answer.agree,
        answer.cutting,
        lowered,
        placement,
        flips,
        judgement,
        engines.cuda_calls,
    )
    now_there = read_build(folder, f"run `{chosen.build_command(bundle.path, precision)}`")
    if now_there.digest != build.digest:
        raise LiraError(f"{folder} was built again meanwhile: run `lira-edge verify` again")
    keep_verified(build, result)
    return result


def _judged(
    bundle: Bundle,
    build: Build,
    flips: dict[str, tuple[Flip, ...]],
    threads: int | None,
    progress: Progress,
    driver: DriverName,
) -> Judgement:
    """Return what the judge says about near ties that came out otherwise. Raises LiraError if it refuses
    engines that were not kept by --force."""
    progress("near ties")
    found = judged_flips(
        Candidate(
            bundle,
            None,
            None,
            build.target,
            build.settled,
            bundle.engine_folder(build.target, build.precision),
            threads=threads,
            progress=lambda what: progress(f"near ties: {what}"),
            precision=build.precision,
            flips=tuple(chain.from_iterable(flips.values())),
            driver=driver,
        )
    )
    forced = build.judgement is not None and build.judgement.forced
    if found.refused and not forced:
        raise LiraError(
            f"the {build.target}-{build.precision} engines decide near ties otherwise than the reference, at "
            f"a cost: {found.refused}. Build them with other options, or see what they answer with "
            "`lira-edge run --unverified`"
        )
    return replace(found, forced=bool(found.refused))


def tables(found: Verified, build: Build) -> Tables:
    """Return the result as tables to print. `build`: the record of the engines."""
    rows: list[tuple[str, ...]] = []
    for stage, errors in found.errors.items():
        output, error = max(errors.items(), key=lambda item: item[1])
        rows.append((stage, f"{error:.1e}", f"({output})", found.placement.get(stage, "")))
    if not found.tokens:
        answer = "not given: the context is too short"
    elif found.agree is None:
        answer = f"{found.tokens} tokens, finite; not compared: no fp32 language model runs here"
    else:
        answer = f"{found.agree} of {found.tokens} next tokens are the fp32 model's"
    about: list[tuple[str, ...]] = [("device", found.setting.text()), ("answer", answer)]
    if found.cuda_calls:
        about.append(("CUDA's calls", found.cuda_calls))
    if found.tokens:
        about.append(("answer in one pass", f"the same logits within {found.cutting:.1e}"))
    about += _lowered_rows(found, build)
    about += [("chosen", line) for line in build.said]
    about += flip_rows(found.flips)
    for judgement in (found.judgement, build.judgement):
        if judgement is not None:
            about += judgement.rows()
    return [
        ("verified on", about),
        ("largest error on the check vectors", rows),
    ]


def _lowered_rows(found: Verified, build: Build) -> list[tuple[str, ...]]:
    """Return how far rounded stages are from their own lowered graphs, if that is known."""
    known: dict[str, float] = {}
    for name, error in found.lowered.items():
        stage = name.partition(".")[0]
        known[stage] = max(error, known.get(stage, 0.0))
    rows: list[tuple[str, ...]] = []
    for stage, name in build.precisions.items():
        precision = precision_named(name)
        if stage in known:
            rows.append((_title(stage), f"within {known[stage]:.1e} of its own lowered graph"))
        elif precision.quantized and stage == "llm":
            wide = f"within {precision.tolerance:.0%} of the fp32 outputs"
            rows.append((_title(stage), f"{wide} only: the build kept no outputs of its lowered graph"))
        elif precision.judged and target_named(build.target).on_gpu:
            said = "finite, and no more is known: the build kept no outputs of its lowered graph"
            rows.append((_title(stage), said))
    return rows


def _title(stage: str) -> str:
    return "language model" if stage == "llm" else stage
