"""Check a folder against its manifest: paths inside it, nothing missing, nothing altered."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from lira_engine.bundle.manifest import FileEntry
from lira_engine.errors import LiraError
from lira_engine.system.cache import cache_folder, read_own_json, write_own
from lira_engine.system.text import is_utf8

Verify = Literal["hashes", "full", "sizes"]

# A file that changed this recently may change again within the same time stamp: its hash is not cached.
_SETTLED_NS = 2_000_000_000


def confined(root: Path, name: str) -> Path:
    """Return the path of `name` below `root`. Raises LiraError if it, or a link on it, leads outside."""
    pure = PurePosixPath(name)
    plain = (
        str(pure) == name and is_utf8(name) and name not in ("", ".") and not any(c in name for c in "\\:\0")
    )
    if not plain or pure.is_absolute() or ".." in pure.parts:
        raise LiraError(f"{root} names the path {name!r}, expected a relative one inside the folder")
    path = root.joinpath(*pure.parts)
    if not path.resolve().is_relative_to(root.resolve()):
        raise LiraError(f"{root}: {name!r} is a link that leads out of the folder, copy the file into it")
    return path


def verify_folder(
    root: Path, files: Mapping[str, FileEntry], mend: str, verify: Verify = "hashes"
) -> dict[str, tuple[str, ...]]:
    """Check every listed file below `root`: confined path, presence, size, SHA-256, and that an ONNX file's
    external data is listed too. Return the external data files by the ONNX file's name.

    `verify`: "hashes" remembers, in the user's cache folder, the state (size, times, inode) in which a file
    was hashed, so that only the first opening of a large bundle takes long; "full" hashes everything again;
    "sizes" hashes nothing. Raises LiraError that ends with `mend`, what the user should do.
    """
    try:
        return _verify_folder(root, files, mend, verify)
    except OSError as error:
        raise LiraError(
            f"{error.filename or root} cannot be read ({os.strerror(error.errno or 0)}): "
            f"let this user read it, or {mend}"
        ) from None


def _verify_folder(
    root: Path, files: Mapping[str, FileEntry], mend: str, verify: Verify
) -> dict[str, tuple[str, ...]]:
    cache = _Cache(root)
    paths = {name: confined(root, name) for name in files}
    states = {name: _state(paths[name], entry, mend) for name, entry in files.items()}
    facts = {} if verify == "full" else cache.recall(states, files)
    new = [name for name in files if name not in facts]
    if verify != "sizes":
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(lambda name: sha256_of(paths[name]), new))
        for name, digest in zip(new, digests, strict=True):
            if digest != files[name].sha256:
                raise LiraError(
                    f"{paths[name]} was altered: its SHA-256 starts with {digest[:12]}, "
                    f"expected {files[name].sha256[:12]}; {mend}"
                )
    for name in new:
        facts[name] = {"sha256": files[name].sha256, "reads": _reads(paths[name])}
    reads: dict[str, tuple[str, ...]] = {}
    for name, fact in facts.items():
        reads[name] = _beside(name, fact["reads"])
        for location, listed in zip(fact["reads"], reads[name], strict=True):
            if listed not in files:
                raise LiraError(
                    f"{paths[name]} reads tensors from {location!r}, which is not among the listed files: "
                    f"do not use it, {mend}"
                )
    if new and verify != "sizes":
        cache.keep(states, facts)
    return reads


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return sha256_of_file(file)


def sha256_of_file(file: BinaryIO) -> str:
    """Return the hexadecimal SHA-256 of an open file from its position on, read in pieces."""
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _state(path: Path, entry: FileEntry, mend: str) -> list[int]:
    """Return facts that differ after a file is changed; its ctime cannot be set back by hand. Raises
    LiraError if the file is missing or has another size than `entry`."""
    if not path.is_file():
        raise LiraError(f"{path} is missing; {mend}")
    found = path.stat()
    if found.st_size != entry.bytes:
        raise LiraError(f"{path} was altered: it has {found.st_size} bytes, expected {entry.bytes}; {mend}")
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _reads(path: Path) -> list[str]:
    if path.suffix != ".onnx":
        return []
    from lira_engine.bundle.graphs import external_locations  # imports onnx, which is slow

    return sorted(external_locations(path))


def _beside(name: str, locations: Sequence[str]) -> tuple[str, ...]:
    """Return the names, in the manifest's sense, of what the file `name` calls `locations`."""
    return tuple(posixpath.join(posixpath.dirname(name), location) for location in locations)


class _Cache:
    """The cache of verified files of one folder, each with its state. Losing it only costs time."""

    def __init__(self, root: Path) -> None:
        key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
        self._path = cache_folder() / "verified" / f"{key}.json"

    def recall(self, states: Mapping[str, list[int]], files: Mapping[str, FileEntry]) -> dict[str, Any]:
        """Return the facts about files that are still in the state in which they were verified, and then
        were what their manifest lists now."""
        known = read_own_json(self._path)
        return {
            name: known[name]["fact"]
            for name, state in states.items()
            if _is_known(known.get(name), state, name, files)
        }

    def keep(self, states: Mapping[str, list[int]], facts: Mapping[str, Any]) -> None:
        newest = time.time_ns() - _SETTLED_NS
        settled = {
            name: {"state": state, "fact": facts[name]}
            for name, state in states.items()
            if max(state[1:3]) < newest
        }
        with suppress(OSError, LiraError):
            write_own(self._path, json.dumps(settled).encode())


def _is_known(entry: Any, state: list[int], name: str, files: Mapping[str, FileEntry]) -> bool:
    """Whether an entry of the cache is one that `keep` wrote about the file in this state."""
    match entry:
        case {"state": kept, "fact": {"sha256": digest, "reads": [*reads]}}:
            written = kept == state and digest == files[name].sha256
            return (
                written
                and all(isinstance(one, str) for one in reads)
                and set(_beside(name, reads)) <= files.keys()
            )
    return False
