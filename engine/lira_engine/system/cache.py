"""Folders of the user: a cache, whose loss costs time only, and data that must last."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write


def cache_folder() -> Path:
    """Return the user's cache folder for lira-edge, which may not exist."""
    return _user_folder("XDG_CACHE_HOME", ".cache", "Library/Caches")


def data_folder() -> Path:
    """Return the user's folder for what must last, which may not exist: what was built or checked on this
    machine, and which keys are trusted."""
    folder = _user_folder("XDG_DATA_HOME", ".local/share", "Library/Application Support")
    return folder / "data" if sys.platform == "win32" else folder


def _user_folder(variable: str, elsewhere: str, on_mac: str) -> Path:
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / on_mac
    else:
        base = Path(os.environ.get(variable) or Path.home() / elsewhere)
    return base / "lira-edge"


class Durations:
    """Seconds that work took last time on this machine, kept in NAME.json of the cache folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def _path(self) -> Path:
        return cache_folder() / f"{self._name}.json"

    def last(self, key: str) -> float | None:
        """Return the seconds, or None if the work was never done."""
        seconds = self._all().get(key)
        return float(seconds) if isinstance(seconds, (int, float)) else None

    def text(self, key: str) -> str:
        """Return ", 12 s last time", or "" if the work was never done."""
        seconds = self.last(key)
        return "" if seconds is None else f", {seconds:.0f} s last time"

    def keep(self, key: str, seconds: float) -> None:
        known = self._all() | {key: round(seconds, 1)}
        with suppress(OSError, LiraError), atomic_write(self._path) as file:
            file.write(json.dumps(known, indent=1).encode())

    def _all(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            known = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                return known
        return {}
