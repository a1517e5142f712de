"""The extras of the installed distribution, and which of their packages are missing."""

from __future__ import annotations

import platform
import re
from functools import cache
from importlib import metadata

from lira_engine.errors import memory_errors_told

DISTRIBUTION = "lira-edge"
# The oldest versions that run built CPU engines, those with an int8 KV cache, and portable graphs (opset 24;
# TensorScatter came last).
ENGINES_FROM = (1, 20)
INT8_CACHE_FROM = (1, 27)
PORTABLE_FROM = (1, 25)


@cache
def extras() -> dict[str, tuple[str, ...]]:
    """Return the packages of each extra, by extra."""
    names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra", [])
    found: dict[str, list[str]] = {name: [] for name in names}
    for requirement in metadata.requires(DISTRIBUTION) or []:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)", requirement)
        if package and extra:
            found[extra[1]].append(package[0])
    return {name: tuple(packages) for name, packages in found.items()}


def missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed. Any distribution of ONNX Runtime runs what
    `onnxruntime` runs."""
    missing = [package for package in extras()[extra] if installed(package) is None]
    return [package for package in missing if package != "onnxruntime" or not onnxruntimes()]


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {package: installed(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}


@cache
def onnxruntimes() -> tuple[str, ...]:
    """Return the installed distributions that bring the package onnxruntime. `onnxruntime` and
    `onnxruntime-gpu` are not all: JetPack, Windows and the nightly builds have others. Each is enough,
    together they overwrite each other's files."""
    return tuple(sorted(set(metadata.packages_distributions().get("onnxruntime", ()))))


def install_line(extra: str) -> str:
    """Return the command that installs an extra, or several with commas between them."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def lacking(entry: metadata.EntryPoint) -> tuple[list[str], str]:
    """Return the missing packages of an entry point's extras (`"MODULE:ATTR [EXTRA]"`), and the command that
    installs them."""
    known = [extra for extra in entry.extras if extra in extras()]
    missing = [package for extra in known for package in missing_packages(extra)]
    return missing, install_line(",".join(known))


def tool_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that lower and run graphs."""
    return {"python": platform.python_version()} | versions(*onnxruntimes(), "onnx", "onnx-ir", "numpy")


def onnxruntime_here() -> tuple[str | None, list[str]]:
    """Return the version and execution providers of ONNX Runtime, from whichever distribution; None and no
    providers if it is missing."""
    try:
        with memory_errors_told():
            import onnxruntime
    except ImportError:
        return None, []
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return onnxruntime.__version__, providers
