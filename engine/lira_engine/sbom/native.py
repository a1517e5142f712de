"""Native code: the libraries in wheels, and what ONNX Runtime needs of CUDA and of NVIDIA's driver."""

from __future__ import annotations

import base64
import re
from importlib.metadata import Distribution, PackagePath
from typing import Any
from urllib.parse import quote

from lira_engine.system.cuda_libraries import use_cuda_libraries
from lira_engine.system.extras import onnxruntime_here
from lira_engine.system.machine import gpus

Part = dict[str, Any]
# What a loader finds by its name, and the module that is all of ONNX Runtime.
_LIBRARY = re.compile(r"(lib[^/]+\.so[.\d]*|[^/]+\.dll|lib[^/]+\.dylib|onnxruntime_pybind11_state\.[^/]+)$")
_MODULE_OF_PYTHON = re.compile(r"\.(cpython-\w+|abi3)[^/]*\.so$")
_OWN_BILL = re.compile(r"[^/]+\.dist-info/sboms/[^/]+$")


def libraries_of(distribution: Distribution) -> list[Part]:
    """Return a component of type file for each library in a distribution, with the SHA-256 that its RECORD
    has. A library's own version is known to nobody: a file name has that of its binary interface at most."""
    found = {
        (path.name, *_sha256(path))
        for path in distribution.files or []
        if _LIBRARY.match(path.name) and (path.name[:4] == "onnx" or not _MODULE_OF_PYTHON.search(path.name))
    }
    return [{"type": "file", "name": name} | _hashes(digests) for name, *digests in sorted(found)]


def own_bills(distribution: Distribution) -> list[Part]:
    """Return a reference for each bill of materials that a wheel brings (PEP 770): of the native libraries
    and crates that were put into it."""
    paths = [path for path in distribution.files or [] if _OWN_BILL.fullmatch(path.as_posix())]
    return [
        {"type": "bom", "url": quote(path.as_posix())} | _hashes(list(_sha256(path)))
        for path in sorted(paths, key=str)
    ]


def cuda_parts(wheels: dict[str, list[Part]]) -> list[Part]:
    """Return a component for each library of CUDA that ONNX Runtime loads here, and for NVIDIA's driver.

    `wheels`: name of a distribution -> its `libraries_of`. The property `lira-edge:from` is the distribution
    that has a library, or `system`.
    """
    _, providers = onnxruntime_here()
    parts: list[Part] = []
    for one in use_cuda_libraries().libraries if "CUDA" in providers else ():
        if one.path is None:
            continue
        homes = [name for name, files in wheels.items() if any(file["name"] == one.file for file in files)]
        # The system's comes first where both have it, and its path is in no folder of packages.
        source = homes[0] if homes and "/nvidia/" in one.path.replace("\\", "/") else "system"
        properties = [
            {"name": "lira-edge:file", "value": one.file},
            {"name": "lira-edge:from", "value": source},
        ]
        parts.append(_versioned("library", one.name, one.version) | {"properties": properties})
    cards = gpus()
    if cards:
        parts.append(_versioned("device-driver", "NVIDIA driver", cards[0].driver))
    return parts


def _versioned(kind: str, name: str, version: str) -> Part:
    known = {"version": version} if version else {}
    return {"type": kind, "bom-ref": name.lower().replace(" ", "-"), "name": name} | known


def _sha256(path: PackagePath) -> tuple[str, ...]:
    """Return the SHA-256 of RECORD in hexadecimal digits; nothing where it has none."""
    if path.hash is None or path.hash.mode != "sha256":
        return ()
    text = path.hash.value
    return (base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex(),)


def _hashes(digests: list[str]) -> Part:
    return {"hashes": [{"alg": "SHA-256", "content": one} for one in digests]} if digests else {}
