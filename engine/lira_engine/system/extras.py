"""What the installed distribution says about its extras, and which of their packages are missing."""

from __future__ import annotations

import platform
import re
from functools import cache
from importlib import metadata

from lira_engine.errors import memory_errors_told

DISTRIBUTION = "lira-edge"
# Wheels of one import package: either will do, both together overwrite each other.
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")
# The oldest versions that run built CPU engines, and portable graphs (opset 24; TensorScatter came last).
ENGINES_FROM = (1, 20)
PORTABLE_FROM = (1, 25)


@cache
def extras() -> dict[str, tuple[str, ...]]:
    """The packages that each extra brings, by extra."""
    names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra", [])
    found: dict[str, list[str]] = {name: [] for name in names}
    for requirement in metadata.requires(DISTRIBUTION) or []:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)", requirement)
        if package and extra:
            found[extra[1]].append(package[0])
    return {name: tuple(packages) for name, packages in found.items()}


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [package for package in extras()[extra] if installed(package) is None]


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def install_line(extra: str) -> str:
    """What the user types to get an extra, or several with commas between them."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def lacking(entry: metadata.EntryPoint) -> tuple[list[str], str]:
    """The packages that are missing of the extras which an entry point names (`"MODULE:ATTR [EXTRA]"`), and
    what the user types to get them."""
    known = [extra for extra in entry.extras if extra in extras()]
    missing = [package for extra in known for package in missing_packages(extra)]
    return missing, install_line(",".join(known))


def tool_versions() -> dict[str, str]:
    """Python and the installed packages that lower and run graphs, with their versions."""
    packages = ("onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "numpy")
    versions = {package: installed(package) for package in packages}
    return {"python": platform.python_version()} | {
        package: version for package, version in versions.items() if version is not None
    }


def onnxruntime_here() -> tuple[str | None, list[str]]:
    """Version and execution providers of ONNX Runtime, whichever wheel brought it (JetPack has its own);
    None where there is none."""
    try:
        with memory_errors_told():
            import onnxruntime
    except ImportError:
        return None, []
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return onnxruntime.__version__, providers
