"""Check the free disk space before work that takes minutes."""

from __future__ import annotations

import shutil
from pathlib import Path

from lira_engine.errors import LiraError


def check_disk(target: Path, needed: int, what: str) -> None:
    """Raise LiraError if the disk of `target`, which need not exist, has less than `needed` bytes free."""
    folder, free = _existing(target), free_bytes(target)
    if free < needed:
        raise LiraError(
            f"{folder} has {free >> 20} MiB of disk left, {what} needs about {needed >> 20} MiB: free some, "
            "or choose another disk"
        )


def free_bytes(target: Path) -> int:
    """Return the free bytes of the disk of `target`, which need not exist."""
    return shutil.disk_usage(_existing(target)).free


def _existing(target: Path) -> Path:
    folder = target.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
