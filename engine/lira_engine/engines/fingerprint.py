"""A fingerprint of the code that decides how engines come out: engines of other code are stale."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent.parent
# Of all targets; what only one target's engines depend on is in its `sources`.
_COMMON = (
    "bundle/external_data.py",
    "engines/builder.py",
    "engines/llm_tensors.py",
    "engines/options.py",
    "engines/precision.py",
    "engines/target.py",
    "lowering/**/*.py",
)


@cache
def lowering_fingerprint(sources: tuple[Path, ...]) -> str:
    """The first 12 hexadecimal digits of a SHA-256 over the code. Reads it, imports none of it.

    `sources`: of a target, see engines.target.
    """
    digest = hashlib.sha256()
    for name, path in lowering_sources(sources):
        source = path.read_bytes().replace(b"\r\n", b"\n")  # a checkout on Windows is the same code
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:12]


def lowering_sources(sources: tuple[Path, ...]) -> list[tuple[str, Path]]:
    """The files that the fingerprint covers, in its order, each with its name: the path in this package, or
    the file's name elsewhere."""
    found = {path for pattern in _COMMON for path in _ROOT.glob(pattern)} | set(sources)
    return sorted((_name(path), path) for path in found)


def _name(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else path.name
