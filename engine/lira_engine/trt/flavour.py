"""Which TensorRT is installed, and which spelling of a graph its parser takes."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, Literal

from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.system.extras import install_line
from lira_engine.system.machine import gpus, jetson

Dialect = Literal["cache_update", "decomposed"]
"""cache_update: `TensorScatter` and `Attention`, the cache is updated where it is. decomposed: products,
softmax and `ScatterElements`, whose output is another buffer than its input."""

# From this version on the parser has TensorScatter, Attention, RotaryEmbedding and RMSNormalization.
_CACHE_UPDATE_FROM: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"tensorrt": (10, 15), "tensorrt-rtx": (1, 2)}
)
_MODULES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}
)
TARGETS = tuple(_MODULES)
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""Of the GPUs that engines for RTX run on where none were named (TensorRT for RTX 1.7)."""
RTX_BUILDS_FOR = ("7.5", *RTX_CAPABILITIES, "12.1")
"""What `--compute-capability` takes there."""
RTX_ALL_PRODUCTS_FROM = (8, 0)
"""Turing (7.5) has products in fp16 only: NVIDIA's support matrix has no int4, the compiler refuses fp32."""
_ARCH = MappingProxyType({"AMD64": "x86_64"})
"""Windows' name for a processor, and everybody else's."""


@dataclass(frozen=True)
class Flavour:
    """A TensorRT that can be imported. Both have one Python interface, in modules of different names."""

    target: str
    module: ModuleType
    version: tuple[int, ...]
    dialect: Dialect

    @property
    def name(self) -> str:
        """Package and version."""
        return f"{self.target} {'.'.join(map(str, self.version))}"


def load_flavour(target: str) -> Flavour:
    """Import the package of "tensorrt" or "tensorrt-rtx". Raises LiraError, with how to get it, where it is
    not installed or does not load."""
    module_name, extra = _MODULES[target]
    try:
        with memory_errors_told():
            module = importlib.import_module(module_name)
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LiraError(
            f"target {target} needs {module_name} ({reason}): {_how_to_get(target, extra)}"
        ) from None
    version = parse_version(module.__version__)
    return Flavour(target, module, version, dialect_of(target, version))


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of "10.3.0.post1": (10, 3, 0)."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def dialect_of(target: str, version: tuple[int, ...]) -> Dialect:
    """What the parser of this version takes."""
    return "cache_update" if version[:2] >= _CACHE_UPDATE_FROM[target] else "decomposed"


def compute_capabilities(flavour: Flavour) -> dict[str, Any]:
    """TensorRT for RTX's constants of the GPUs that it builds for, by "8.9"."""
    known = flavour.module.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in known.items() if name.startswith("SM")}


def engine_machine(target: str) -> dict[str, str]:
    """Where engines of a target run. Those for RTX: on any GPU of their compute capabilities, on Linux and
    Windows alike, as NVIDIA says (developer.nvidia.com/tensorrt-rtx: portable across GPUs and OS). Those of
    TensorRT: on the GPU that they were built on, a Jetson's under the same L4T."""
    arch = _ARCH.get(platform.machine(), platform.machine())
    if target == "tensorrt-rtx":
        return {"arch": arch}
    here = {"system": platform.system(), "arch": arch}
    board = jetson()
    if board is not None:  # nvidia-smi has one name for the GPUs of all boards
        return here | {"gpu": board.model, "l4t": board.l4t}
    return here | {"gpu": ", ".join(sorted({gpu.name for gpu in gpus()})) or "none found"}


def engine_tools(target: str) -> dict[str, str]:
    """The package that engines depend on: another version does not load them."""
    flavour = load_flavour(target)
    return {flavour.target: ".".join(map(str, flavour.version))}


def _how_to_get(target: str, extra: str) -> str:
    if target == "tensorrt-rtx":
        return f"pip install tensorrt-rtx, or to run engines, too, {install_line(extra)}"
    return (
        "on JetPack `sudo apt install tensorrt python3-libnvinfer`, in a virtual environment made with "
        f"--system-site-packages; elsewhere {install_line(extra)}"
    )
