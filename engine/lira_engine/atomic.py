"""Files and folders that appear whole or not at all.

What is being written lives in a hidden sibling (`.NAME.partial-...`) and is renamed at the end. Its writer
holds a lock on it, so that the next run can tell the leftovers of a killed one from the work of a living one.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lira_engine.errors import LiraError

try:
    import fcntl
except ImportError:  # Windows: there leftovers are told by their age
    fcntl = None  # type: ignore[assignment]

_DAY = 24 * 3600.0
_USER_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextmanager
def atomic_directory(
    target: Path | str, overwrite: bool = False, marker: str | None = "lira.json"
) -> Iterator[Path]:
    """Yield a new hidden folder beside `target` that takes its name when the block ends without an error.

    An empty folder at `target` is replaced. One with content is an error, unless `overwrite` is set and it
    holds a file named `marker` (so that a mistyped path never costs a folder that this tool did not write;
    None is for paths that no user types).
    Raises LiraError for these, and where the disk is full or may not be written.
    """
    target = Path(os.path.abspath(target))
    _refuse_existing(target, overwrite, marker)
    with _readable_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial, lock = _claim(target, directory=True)
        try:
            yield partial
            for folder, _, names in os.walk(partial):
                for name in names:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            _swap_in(partial, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


@contextmanager
def atomic_write(target: Path | str) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `target` when the block ends without an error.

    Raises LiraError where the disk is full or `target` may not be written.
    """
    target = Path(os.path.abspath(target))
    if target.is_dir():
        raise LiraError(f"{target} is a folder, expected the path of a file to write")
    with _readable_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial, lock = _claim(target, directory=False)
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            _sync(target.parent)
        finally:
            partial.unlink(missing_ok=True)
            os.close(lock)


def _refuse_existing(target: Path, overwrite: bool, marker: str | None) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise LiraError(f"{target} exists and is not a folder of its own: choose another path")
    if not target.exists() or not any(target.iterdir()):
        return
    if marker is not None and not (target / marker).is_file():
        raise LiraError(f"{target} exists and holds other things than lira-edge wrote: choose another path")
    if not overwrite:
        raise LiraError(f"{target} exists already: choose another path, or ask to overwrite it")


def _claim(target: Path, directory: bool) -> tuple[Path, int]:
    """Remove what killed runs left beside `target`; make and lock a new hidden sibling."""
    partial = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    # The folder's own lock, held for this moment only: nobody sweeps between the creation and its lock.
    parent = os.open(target.parent, os.O_RDONLY) if fcntl else None
    try:
        if parent is not None:
            _lock(parent, wait=True)
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
            _remove_if_abandoned(leftover)
        if directory:
            partial.mkdir()
        else:
            partial.touch()
        lock = os.open(os.devnull if fcntl is None else partial, os.O_RDONLY)
        _lock(lock, wait=False)
    finally:
        if parent is not None:
            os.close(parent)
    return partial, lock


def _remove_if_abandoned(leftover: Path) -> None:
    with suppress(OSError):
        if fcntl is None:
            if time.time() - leftover.stat().st_mtime < _DAY:
                return
        else:
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                if not _lock(descriptor, wait=False):
                    return
            finally:
                os.close(descriptor)
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _lock(descriptor: int, wait: bool) -> bool:
    """Whether the lock was free. File systems without locks count as free."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _swap_in(partial: Path, target: Path) -> None:
    if not target.exists():
        os.rename(partial, target)
        return
    retired = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    os.rename(target, retired)
    try:
        os.rename(partial, target)
    except OSError:
        os.rename(retired, target)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and fcntl is None:  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(PermissionError):  # Windows refuses to flush what was opened for reading
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _readable_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _USER_ERRORS:
            raise
        raise LiraError(f"{target} cannot be written: {os.strerror(error.errno)}") from error
