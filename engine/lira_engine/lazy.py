"""Names of a package that are imported when they are first used.

The command line lists its commands without loading NumPy or ONNX; and where they cannot be loaded, or Ctrl-C
comes meanwhile, the command line is there to say so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`; `homes`: the names that it has, and the module of the package of each."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return find
