"""Fingerprint the code that decides what is in an engine: engines built by other code are stale."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent.parent
# For all targets; code that only one target's engines depend on is in its `sources`.
_COMMON = (
    "bundle/external_data.py",
    "engines/builder.py",
    "engines/llm_tensors.py",
    "engines/options.py",
    "engines/precision.py",
    "engines/recipe.py",
    "engines/target.py",
    "lowering/**/*.py",
)


@cache
def lowering_fingerprint(sources: tuple[Path, ...]) -> str:
    """Return the first 12 hexadecimal digits of a SHA-256 over the code, without importing it.

    `sources`: those of a target (engines.target).
    """
    digest = hashlib.sha256()
    for name, path in lowering_sources(sources):
        source = path.read_bytes().replace(b"\r\n", b"\n")  # a checkout on Windows is the same code
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:12]


def lowering_sources(sources: tuple[Path, ...]) -> list[tuple[str, Path]]:
    """Return the files that the fingerprint covers, in its order, each with its name: the path in this
    package, or the file name of a file outside it."""
    found = {path for pattern in _COMMON for path in _ROOT.glob(pattern)} | set(sources)
    return sorted((_name(path), path) for path in found)


def _name(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else path.name
