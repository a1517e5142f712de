"""Record that engines were verified on a device, and check that it is this machine's."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from lira_engine.engines.record import BUILD_NAME, Build, Verified
from lira_engine.engines.target import Target
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def keep_verified(folder: Path, build: Build, found: Verified | None) -> None:
    """Write the result into build.json; None for engines that failed."""
    with atomic_write(folder / BUILD_NAME) as file:
        file.write(replace(build, verified=found).dumps().encode())


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
