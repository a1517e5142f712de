"""Check that engines may be loaded: built for this target from this bundle by this code, and not altered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import Verify, verify_folder
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.fingerprint import lowering_fingerprint
from lira_engine.engines.precision import MIXED
from lira_engine.engines.record import BUILD_NAME, Build, read_build
from lira_engine.engines.target import Target
from lira_engine.errors import LiraError
from lira_engine.version import __version__


def usable_build(bundle: Bundle, target: Target, precision: str, verify: Verify = "hashes") -> Build:
    """Return the record of engines that may be loaded here. Raises LiraError with the reason and the command
    that mends it.

    `verify`: see bundle.integrity. `Target.foreign` says whether the installed packages can load them.
    """
    target.check_precision(precision)
    folder = bundle.engine_folder(target.name, precision)
    mend = f"run `{target.build_command(bundle.path, precision)}`"
    build = read_build(folder, mend)
    if (build.target, build.precision) != (target.name, precision):
        raise LiraError(
            f"{folder} holds engines for {build.target}-{build.precision}, "
            f"expected {target.name}-{precision}; {mend}"
        )
    mend = f"run `{target.build_command(bundle.path, precision, build.options)}`"
    if build.lira_edge_version != __version__:
        raise LiraError(
            f"{folder} was built by lira-edge {build.lira_edge_version}, this is {__version__}; {mend}"
        )
    code = lowering_fingerprint(target.sources)
    if build.lowering != code:
        raise LiraError(
            f"{folder} is stale: it was built by lowering code {build.lowering}, this is {code}; {mend}"
        )
    foreign = target.foreign(build)
    if foreign is not None:
        raise LiraError(f"{folder} {foreign}; {mend}")
    _check_sources(build, bundle, folder, mend)
    _check_complete(build, bundle, target, mend)
    verify_folder(folder, build.files, mend, verify)
    known = build.known.by_vectors(bundle.vectors_digest)
    return replace(build, known=known, verified=None if known.verified is None else build.verified)


def forced_remark(build: Build) -> str:
    """Return a line about engines that were kept although their judge refused them, or their outputs were
    wrong and were not verified since; "" for others."""
    engines = f"engines {build.target}-{build.precision}"
    if build.wrong and build.verified is None:
        first, *others = build.wrong.values()
        more = f"; so are {len(others)} other stages" if others else ""
        return f"{engines} were kept by --force: {first}{more}"
    found = build.judgement
    if found is None or not found.forced:
        return ""
    return f"{engines} were kept by --force: {found.refused} (budget {found.budget})"


def _check_sources(build: Build, bundle: Bundle, folder: Path, mend: str) -> None:
    """Raises LiraError if the engines were built from other files than the bundle's."""
    for name, digest in build.sources.items():
        listed = bundle.manifest.files.get(name)
        if listed is None or listed.sha256 != digest:
            now = "is no longer there" if listed is None else f"is now {listed.sha256[:12]}"
            raise LiraError(f"{folder} is stale: it was built from {name} {digest[:12]}, which {now}; {mend}")


def _check_complete(build: Build, bundle: Bundle, target: Target, mend: str) -> None:
    """Raises LiraError if a record lacks what a build writes: it was edited."""
    record = bundle.engine_folder(target.name, build.precision) / BUILD_NAME
    for stage in STAGES:
        for name in bundle.stage_sources(stage):
            if name not in build.sources:
                raise LiraError(f"{record} lists no source {name}; {mend}")
        if target.file(stage) not in build.files:
            raise LiraError(f"{record} lists no {target.file(stage)}; {mend}")
        found, choices = build.precisions.get(stage), target.stage_precisions(build.precision, stage)
        if found not in choices:
            raise LiraError(
                f"{record}: precision of {stage} is {found!r}, expected {' or '.join(choices)}; {mend}"
            )
    if build.precision == MIXED and not build.recipe:
        raise LiraError(f"{record} lists no recipe; {mend}")
    try:  # openers rely on them
        target.read_options(build.options, build.precision)
    except LiraError as error:
        raise LiraError(f"{record}: {error}; {mend}") from None
