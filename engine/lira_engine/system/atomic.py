"""Write files and folders that appear whole or not at all.

A writer fills a hidden sibling (`.NAME.partial-...`) and renames it at the end. It holds a lock on the
sibling, so that the next run can tell leftovers of a killed run from work in progress.
"""

from __future__ import annotations

import errno
import glob
import os
import re
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
except ImportError:  # Windows: a leftover is known by its age
    fcntl = None  # type: ignore[assignment]

_DAY = 24 * 3600.0
_MENDS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some room on its disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions"),
    errno.EROFS: "make its disk writable",
    errno.ENOTDIR: "remove the file that stands where its folder should be",
    errno.EFBIG: "take a disk that allows files of that size, or raise the shell's limit (ulimit -f)",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ELOOP: "remove the link that leads to itself",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the shell's limit of open files (ulimit -n)"),
}
_NUMPY_FULL = re.compile(r"\d+ requested and \d+ written")  # it gives no reason
_DEFAULT_MEND = "choose another path or disk"


@contextmanager
def atomic_directory(
    target: Path | str, overwrite: bool = False, marker: str | None = "lira.json"
) -> Iterator[Path]:
    """Yield a new hidden folder beside `target` that takes its name when the block ends without an error.

    Replaces an empty folder at `target`. A folder with content is an error, unless `overwrite` is set and it
    holds a file named `marker`: a mistyped path must not cost a folder that this tool did not write. Use None
    for paths that no user types. Keeps what appears at `target` while the block runs.
    Raises LiraError in these cases, and if the disk is full or cannot be written.
    """
    target = Path(os.path.abspath(target))
    with readable_errors(target):
        check_target(target, overwrite, marker)
        _make_parent(target)
        original = _identity(target)
        partial, lock = _claim(target, directory=True)
        try:
            yield partial
            for folder, _, names in os.walk(partial):
                for name in names:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            with _locked(target.parent):  # one run at a time renames, and none cleans up meanwhile
                _swap_in(partial, target, overwrite, marker, original)
            _sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


@contextmanager
def atomic_write(target: Path | str) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `target` when the block ends without an error.

    Replaces the file that a link leads to, not the link. Writes to a device or a pipe directly. Raises
    LiraError if the disk is full or `target` cannot be written.
    """
    target = Path(os.path.abspath(target))
    with readable_errors(target):
        if _is_device(target):
            with open(target, "wb") as file:
                yield file
            return
        target = Path(os.path.realpath(target))
        partial, lock = _claim_file(target)
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


def check_file(target: Path | str) -> None:
    """Raise LiraError if `atomic_write` would; call it before long work. Makes the file's folder."""
    target = Path(os.path.abspath(target))
    with readable_errors(target):
        if not _is_device(target):
            partial, lock = _claim_file(Path(os.path.realpath(target)))
            partial.unlink()
            os.close(lock)


def _is_device(target: Path) -> bool:
    """Return whether `target` is a device or a pipe. Raises LiraError for a folder."""
    if target.is_dir():
        raise LiraError(f"{target} is a folder, expected the path of a file to write")
    return target.exists() and not target.is_file()


def _claim_file(target: Path) -> tuple[Path, int]:
    _make_parent(target)
    return _claim(target, directory=False)


@contextmanager
def passing_directory(beside: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside a path, for the block only. What a killed run leaves, the next one
    removes."""
    with readable_errors(beside):
        partial, lock = _claim(beside, directory=True)
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left in `folder`, whatever they wrote; leave the work of running ones."""
    with suppress(OSError), _locked(folder):
        for leftover in folder.glob(".*.partial-*"):
            _remove_if_abandoned(leftover)


@contextmanager
def readable_errors(target: Path) -> Iterator[None]:
    """Turn an OSError of the block into LiraError: `target` cannot be written, or a file that goes into it
    cannot be read."""
    try:
        yield
    except OSError as error:
        if error.errno is None and _NUMPY_FULL.search(str(error)):
            raise LiraError(
                f"{target} cannot be written: the disk took a part of it ({error}); free some room on it"
            ) from error
        if error.filename is None and error.errno not in _MENDS:
            raise  # not about files
        other = None if ".partial-" in str(error.filename or target) else error.filename
        raise LiraError(system_error(error, None if other else f"{target} cannot be written")) from error


def system_error(error: OSError, what: str | None = None) -> str:
    """Return one line: `what` went wrong, why, and what the user can do about it."""
    number = error.errno or 0
    what = what or f"{error.filename or 'the output'} cannot be read or written"
    return f"{what}: {os.strerror(number)}; {_MENDS.get(number, _DEFAULT_MEND)}"


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise LiraError(
            f"{error.filename} is a file, expected a folder for {target.name}: remove it"
        ) from None


def check_target(target: Path, overwrite: bool, marker: str | None = "lira.json") -> None:
    """Raise LiraError if `atomic_directory` would; call it before long work."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        mend = "remove it" if marker is None else "choose another path"
        raise LiraError(f"{target} exists and is not a folder, or only a link to one: {mend}")
    if not target.exists() or not any(target.iterdir()):
        return
    if marker is not None and not (target / marker).is_file():
        raise LiraError(f"{target} exists and holds files that lira-edge did not write: choose another path")
    if not overwrite:
        raise LiraError(f"{target} exists already: choose another path, or overwrite it (--overwrite)")


def _appeared(target: Path) -> LiraError:
    return LiraError(
        f"{target} appeared while it was being written and stays as it is, what was written is removed: "
        "choose another path"
    )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a folder or file from another one at this path; None if there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _claim(target: Path, directory: bool) -> tuple[Path, int]:
    """Remove leftovers of killed runs beside `target`; create and lock a new hidden sibling."""
    partial = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    with _locked(target.parent):  # no run cleans up between creation and lock
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
            _remove_if_abandoned(leftover)
        if directory:
            partial.mkdir()
        else:
            partial.touch()
        lock = os.open(os.devnull if fcntl is None else partial, os.O_RDONLY)
        _lock(lock, wait=False)
    return partial, lock


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's own lock, for a moment only. Windows cannot open folders: no lock there."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            _lock(descriptor, wait=True)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove_if_abandoned(leftover: Path) -> None:
    with suppress(OSError):
        if fcntl is None:
            if time.time() - leftover.stat().st_mtime < _DAY:
                return
        else:
            # Opened without waiting: somebody may have put a pipe there.
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NONBLOCK)
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
    """Take the lock; return whether it was free. True on file systems without locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _swap_in(
    partial: Path, target: Path, overwrite: bool, marker: str | None, original: tuple[int, int] | None
) -> None:
    """Rename `partial` to `target`; replace only the `original` folder, which was there at the start.

    Any check leaves a gap before the rename. So the system itself refuses to rename onto a file, a link or a
    folder with content; and the replaced folder is checked again under another name, one that no run cleans
    up.
    """
    try:
        check_target(target, overwrite, marker)
    except LiraError:
        raise _appeared(target) from None
    with suppress(OSError):
        target.rmdir()  # Windows does not rename onto an empty folder
    replaced: Path | None = None
    if overwrite and _identity(target) is not None:
        if not _replaceable(target, marker, original):
            raise _appeared(target)
        replaced = target.parent / f".{target.name}.replaced-{secrets.token_hex(4)}"
        os.rename(target, replaced)
    try:
        if replaced is not None and not _replaceable(replaced, marker, original):
            raise _appeared(target)
        os.rename(partial, target)
    except (LiraError, OSError) as error:
        if replaced is not None:
            _put_back(replaced, target)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _appeared(target) from None
        raise
    if replaced is not None:
        os.rename(replaced, partial)  # a name that is cleaned up


def _replaceable(folder: Path, marker: str | None, original: tuple[int, int] | None) -> bool:
    return marker is None or (_identity(folder) == original and (folder / marker).is_file())


def _put_back(replaced: Path, target: Path) -> None:
    try:
        os.rename(replaced, target)
    except OSError:
        raise LiraError(
            f"{target} appeared while it was being replaced and stays as it is, what was written is removed; "
            f"the folder that stood there is {replaced} now: move it to where it belongs"
        ) from None


def _sync(path: Path) -> None:
    if path.is_dir() and fcntl is None:  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(PermissionError):  # Windows refuses to flush what was opened for reading
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
