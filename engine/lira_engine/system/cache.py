"""Folders of the user: a cache, whose loss costs time only, and data that must last.

Both are for this user alone, and a file in them counts only if nobody else could have written it.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write, readable_errors

MOST = 64 << 20
"""Bytes of the largest file that is read, unless the caller says otherwise."""


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
        given = Path(os.environ.get(variable, ""))
        # The standard ignores relative ones: they would be below a stranger's folder in which one stands.
        base = given if given.is_absolute() else Path.home() / elsewhere
    return base / "lira-edge"


def own_folder(folder: Path) -> Path:
    """Make one of the user's folders, or one below them, which nobody else may enter; return it.

    Raises LiraError if it cannot be made, or if it or the user's folder is a link or another user's.
    """
    root = _root(folder)
    with readable_errors(folder):
        for one in (root, folder):
            with suppress(FileExistsError):
                one.mkdir(mode=0o700, parents=True)
            if not _only_mine(one):
                raise LiraError(_refused(one))
    return folder


def read_own(path: Path, most: int = MOST) -> bytes | None:
    """Return the content of a file below one of the user's folders; None if there is none, if it is no
    regular file or larger than `most`, or if another user could have written it."""
    try:
        if not _only_mine(_root(path)):
            return None
        # A pipe is opened without waiting for its other end.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            others = os.name == "posix" and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if not stat.S_ISREG(found.st_mode) or found.st_size > most or not _mine(found) or others:
                return None
            return file.read(most)
    except OSError:
        return None


def read_own_json(path: Path) -> dict[str, Any]:
    """Return the object in a file, read by `read_own`; an empty one if there is none."""
    with suppress(ValueError, RecursionError):
        known = json.loads(read_own(path) or b"")
        if isinstance(known, dict):
            return known
    return {}


def write_own(path: Path, content: bytes) -> None:
    """Write a file below one of the user's folders, which nobody else may read. Raises LiraError if it cannot
    be written, or the folder is a link or another user's."""
    own_folder(_root(path))
    with atomic_write(path) as file:
        if os.name == "posix":
            os.fchmod(file.fileno(), 0o600)
        file.write(content)


def _root(path: Path) -> Path:
    for root in (cache_folder(), data_folder()):
        if path.is_relative_to(root):
            return root
    raise ValueError(f"{path} is in none of the user's folders")


def _only_mine(folder: Path) -> bool:
    """Return whether a folder is this user's, after taking all rights of others away. Raises OSError."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or not _mine(found):
        _say_once(_refused(folder))
        return False
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    return True


def _mine(found: os.stat_result) -> bool:
    return os.name != "posix" or found.st_uid == os.geteuid()


def _refused(folder: Path) -> str:
    return f"{folder} is a link, a file or another user's folder and is not used: remove it"


@cache
def _say_once(text: str) -> None:
    from lira_engine.system.terminal import warn  # imports rich, which is slow

    warn(text)


class Durations:
    """Seconds that work took last time on this machine, kept in NAME.json of the cache folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def _path(self) -> Path:
        return cache_folder() / f"{self._name}.json"

    def last(self, key: str) -> float | None:
        """Return the seconds, or None if the work was never done."""
        seconds = read_own_json(self._path).get(key)
        return seconds if isinstance(seconds, float) and math.isfinite(seconds) else None

    def text(self, key: str) -> str:
        """Return ", 12 s last time", or "" if the work was never done."""
        seconds = self.last(key)
        return "" if seconds is None else f", {seconds:.0f} s last time"

    def keep(self, key: str, seconds: float) -> None:
        known = read_own_json(self._path) | {key: round(float(seconds), 1)}
        with suppress(OSError, LiraError):
            write_own(self._path, json.dumps(known, indent=1).encode())
