"""Remember that engines were verified on a device, and check that it is this machine's."""

from __future__ import annotations

from pathlib import Path

from lira_engine.bundle import schema
from lira_engine.engines.record import Build, Verified
from lira_engine.engines.target import Target
from lira_engine.errors import LiraError
from lira_engine.trust.known_builds import keep_known


def keep_verified(build: Build, found: Verified | None) -> None:
    """Remember the result in the user's data folder; None for engines that failed. Raises LiraError if it
    cannot be written."""
    if found is None:
        keep_known(build.digest, vectors=build.known.vectors, verified=None, checked="")
    else:
        keep_known(build.digest, vectors=build.known.vectors, verified=schema.write(found))


def require_verified(build: Build, target: Target, bundle: Path) -> None:
    """Raises LiraError if engines for a GPU were not verified in this machine's setting."""
    if not target.on_gpu:
        return
    engines = f"the {build.target}-{build.precision} engines"
    mend = (
        f"run `{target.verify_command(bundle, build.precision)}`, or see what they answer anyway "
        "with `lira-edge run --unverified`"
    )
    if build.verified is None:
        raise LiraError(f"{engines} were not verified on a device: {mend}")
    here, there = target.setting(), build.verified.setting
    if here != there:
        raise LiraError(f"{engines} were verified on {there.text()}; this is {here.text()}: {mend}")
