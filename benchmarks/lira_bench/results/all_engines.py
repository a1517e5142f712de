"""Measure every engine that is built for this machine, one after the other, a process each."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL.Image import Image

from lira_bench.results import output
from lira_bench.results.engine_process import measure_apart
from lira_bench.results.result import (
    Asked,
    BundleFacts,
    EngineResult,
    MachineFacts,
    Pictures,
    Results,
    engine_result,
)
from lira_bench.results.submitted import read_submitted
from lira_bench.speed.benchmark import check_request, find_images, is_forced
from lira_bench.speed.request import Request
from lira_bench.speed.summary import is_authors_model, versions
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import MANIFEST_NAME
from lira_engine.engines.usable import forced_remark
from lira_engine.errors import LiraError, quoted
from lira_engine.inspect import BuiltEngines, built_engines
from lira_engine.system.atomic import check_file
from lira_engine.system.cores import default_threads
from lira_engine.system.machine import Machine, this_machine
from lira_engine.system.terminal import warn
from lira_engine.targets import TARGETS, target_named
from lira_runtime.images import open_image

Progress = Callable[[str], None]
"""Called with what is being done."""

IMAGES = {
    "81afdbb828b5637bee81d3f1aaad319594bc6f5c0b394f3cb2782592bc9e0a13": "sample.png",
    "14e95c22745cc5335c4c7a9979efb309af519622208406c0ab39e18fabb19317": "coffee.jpg",
}
"""SHA-256 -> name of the photographs in the repository's `assets`: anybody can measure with them."""
GENERATED, OWN = "generated image", "own image"


@dataclass(frozen=True)
class Measured:
    """`results` is the content of results.json in `folder`."""

    results: Results
    folder: Path

    def check(self) -> None:
        """Raise LiraError if an engine that runs here failed, or was measured on a busy machine although that
        was forbidden."""
        failed = [one for one in self.results.engines if one.reason and one.status != "refused"]
        if failed:
            count = f"{len(failed)} of {len(self.results.engines)} engines failed"
            raise LiraError(
                f"{count}, {failed[0].name}: {failed[0].reason}; {self.folder / output.TABLE} has all of them"
            )


def bench_all(request: Request, progress: Progress = lambda doing: None) -> Measured:
    """Measure all engines of the bundle that run here, and write the files of the results.

    An engine that fails ends no other: its row has the reason, and `Measured.check` raises it. Raises
    LiraError for anything that the user can mend, before anything is measured.
    """
    check_request(request)
    _check(request)
    bundle = Bundle.open(request.bundle)
    folder = request.output or Path(f"bench-{request.bundle.resolve().name}-{request.task}-all")
    progress("looking at the engines")
    found = _in_order(built_engines(bundle))
    ready = [one for one in found if one.reason is None]
    if not ready:
        raise LiraError(_nothing(bundle, found))
    if not any(_driven(one) for one in ready):
        target_named(ready[0].name.rpartition("-")[0]).with_driver(request.driver)
    output.check(folder, [one.name for one in found], request.overwrite)
    pictures = _pictures(find_images(request.images))
    if request.submit is not None:
        _check_submit(request.submit, folder)
    output.begin(folder, [one.name for one in found])
    engines: list[EngineResult] = []
    records: dict[str, Mapping[str, Any]] = {}
    for number, one in enumerate(ready, 1):
        place = f"{one.name}, {number} of {len(ready)}"
        reason = _measure(replace(request, output=folder / one.name), one, folder, place, progress)
        record = output.read_record(folder / one.name)
        if record is not None:
            records[one.name] = record
        engines.append(engine_result(one.name, one.build, record, reason, ran=True))
    drift = _drift(request, ready, records, folder, progress) if len(records) > 1 else None
    engines += [
        engine_result(one.name, one.build, None, one.reason, ran=False)
        for one in found
        if one.reason is not None
    ]
    results = Results(
        date=datetime.now(timezone.utc).date().isoformat(),
        machine=machine_facts(this_machine(), request.threads, versions()),
        bundle=_bundle_facts(bundle),
        asked=Asked(
            request.task,
            is_forced(request, bundle),
            request.max_tiles,
            request.runs,
            request.warmup,
            pictures,
        ),
        engines=tuple(engines),
        drift=drift,
    )
    progress("drawing")
    output.write(folder, results)
    return Measured(results, folder)


def machine_facts(machine: Machine, threads: int | None, versions: Mapping[str, str]) -> MachineFacts:
    """Return what is told of a machine. Its kernel's own suffix, which may be anybody's, is left out."""
    return MachineFacts(
        system=re.sub(r"^(\S*) (\d+(?:\.\d+)*)?\S* ", r"\1 \2 ", machine.system),
        cpu=machine.cpu,
        cores=machine.cores,
        threads=threads or default_threads(),
        memory_gib=machine.memory_gib,
        instruction_sets=machine.instruction_sets,
        gpus=machine.gpus,
        jetson=machine.jetson,
        power_mode=machine.power_mode,
        versions=dict(versions),
    )


def _check(request: Request) -> None:
    """Raise LiraError for options that say less than all."""
    if request.precision is not None or request.target != Request.target:
        raise LiraError("--all measures every engine that is built: leave --target and --precision out")
    if request.peer:
        raise LiraError("--all and --peer: peers are measured beside one engine, leave one of the two out")


def _check_submit(path: Path, folder: Path) -> None:
    """Raise LiraError if the file for others could not be written after all engines were measured."""
    if path.is_dir() or path.absolute() == folder.absolute():
        raise LiraError(f"--submit {path} is a folder, expected a file to write")
    if path.absolute().parent == folder.absolute() and path.name in output.FILES:
        raise LiraError(f"--submit {path} is a file of the results themselves: choose another name")
    if path.is_file():
        try:
            read_submitted(path)
        except LiraError:
            raise LiraError(
                f"--submit {path} is there already, and no file that it wrote: choose another name"
            ) from None
    check_file(path)


def _nothing(bundle: Bundle, found: Sequence[BuiltEngines]) -> str:
    if not found:
        return f"{bundle.path} has no engines: run `lira-edge build {quoted(bundle.path)}`"
    first = found[0]
    return f"none of {len(found)} built engines runs on this machine; {first.name}: {first.reason}"


def _in_order(found: list[BuiltEngines]) -> list[BuiltEngines]:
    """Return the engines by target, precisions as the target lists them."""

    def place(one: BuiltEngines) -> tuple[int, int, str]:
        target, _, precision = one.name.rpartition("-")
        if target not in TARGETS:
            return len(TARGETS), 0, one.name
        known = TARGETS[target].precisions
        return (
            list(TARGETS).index(target),
            known.index(precision) if precision in known else len(known),
            one.name,
        )

    return sorted(found, key=place)


def _driven(one: BuiltEngines) -> bool:
    """Return whether `--driver` is for these engines."""
    return one.build is not None and target_named(one.build.target).takes_driver


def _measure(request: Request, one: BuiltEngines, folder: Path, place: str, progress: Progress) -> str | None:
    """Measure one engine into the request's folder. Return what went wrong, or None."""
    assert one.build is not None
    warn(forced_remark(one.build))
    asked = replace(
        request,
        target=one.build.target,
        precision=one.build.precision,
        driver=request.driver if _driven(one) else Request.driver,
        all=False,
        submit=None,
        overwrite=False,
    )
    log = folder / output.LOGS / f"{one.name}.txt"
    progress(place)
    try:
        return measure_apart(asked, log, lambda doing: progress(f"{place}: {doing}"))
    finally:
        if log.exists() and not log.stat().st_size:
            log.unlink()


def _drift(
    request: Request,
    ready: Sequence[BuiltEngines],
    records: Mapping[str, Mapping[str, Any]],
    folder: Path,
    progress: Progress,
) -> float | None:
    """Measure the first engine again, after all others. Return the time of its answer over that of the first
    time; None if it fails now."""
    first = next(one for one in ready if one.name in records)
    again = folder / output.AGAIN
    asked = replace(request, output=again, ablation=False, require_quiet=False)
    try:
        _measure(asked, first, folder, f"{first.name} again", progress)
        record = output.read_record(again)
    finally:
        shutil.rmtree(again, ignore_errors=True)
    return None if record is None else record["total_s"]["median"] / records[first.name]["total_s"]["median"]


def _bundle_facts(bundle: Bundle) -> BundleFacts:
    manifest = bundle.manifest
    return BundleFacts(
        name=manifest.name,
        manifest_sha256=sha256_of(bundle.path / MANIFEST_NAME),
        synthetic=bool(manifest.provenance.get("synthetic")),
        is_authors_model=is_authors_model(manifest.model),
    )


def _pictures(images: Sequence[Path | Image]) -> Pictures:
    """Open all images, and describe them. A name that is not the repository's stays here."""
    sizes = [open_image(image).size for image in images]
    first = images[0]
    name = IMAGES.get(sha256_of(first), OWN) if isinstance(first, Path) else GENERATED
    return Pictures(len(images), name, *sizes[0])
