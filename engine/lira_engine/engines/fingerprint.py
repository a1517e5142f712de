"""A fingerprint of the code that decides how engines come out: engines of other code are stale."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_SOURCES = (
    "bundle/external_data.py",
    "engines/builder.py",
    "engines/llm_tensors.py",
    "engines/options.py",
    "lowering/**/*.py",
    "ort/build_cpu.py",
    "ort/build_cuda.py",
    "ort/lowered_reference.py",
    "trt/build.py",
    "trt/compile.py",
    "trt/flavour.py",
    "trt/plugins.py",
    "trt/profiles.py",
)


@cache
def lowering_fingerprint() -> str:
    """The first 12 hexadecimal digits of a SHA-256 over the sources. Reads them, imports none of them."""
    digest = hashlib.sha256()
    for path in lowering_sources():
        source = path.read_bytes().replace(b"\r\n", b"\n")  # a checkout on Windows is the same code
        digest.update(f"{path.relative_to(_ROOT).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:12]


def lowering_sources() -> list[Path]:
    """The files that the fingerprint covers, in its order."""
    return sorted(path for pattern in _SOURCES for path in _ROOT.glob(pattern))
