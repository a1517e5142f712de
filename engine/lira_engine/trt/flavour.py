"""The installed TensorRT, and the dialect of graphs that its parser takes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, Literal

from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.system.extras import install_line

Dialect = Literal["cache_update", "decomposed"]
"""cache_update: `TensorScatter` and `Attention`, which update the cache in place. decomposed: `MatMul`,
`Softmax` and `ScatterElements`, which writes to another buffer than its input."""


@dataclass(frozen=True)
class Package:
    """What differs between TensorRT and TensorRT for RTX.

    Attributes:
        module: its Python module. extra: of lira-edge, with what runs its engines. cache_update_from: the
            first version whose parser has TensorScatter, Attention, RotaryEmbedding and RMSNormalization.
        block_sizes: inputs of an int4 weight that can share a scale: as documented, or, for RTX, as it
            compiles. compiles_at_run: engines are for several GPUs, and the GPU that runs them compiles their
            kernels; TensorRT builds for the installed GPU, and times its kernels.
    """

    module: str
    extra: str
    cache_update_from: tuple[int, int]
    block_sizes: tuple[int, ...]
    compiles_at_run: bool


PACKAGES: Mapping[str, Package] = MappingProxyType(
    {
        "tensorrt": Package("tensorrt", "tensorrt", (10, 15), (128, 64), False),
        "tensorrt-rtx": Package("tensorrt_rtx", "rtx", (1, 2), (128, 64, 32), True),
    }
)
"""By target."""
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""The default compute capabilities of engines for RTX (TensorRT for RTX 1.7)."""
RTX_BUILDS_FOR = ("7.5", *RTX_CAPABILITIES, "12.1")
"""What `--compute-capability` takes."""
RTX_ALL_PRECISIONS_FROM = (8, 0)
"""Turing (7.5) has matmuls in fp16 only: NVIDIA's support matrix has no int4, the compiler refuses fp32."""


@dataclass(frozen=True)
class Flavour:
    """An imported TensorRT. Both packages have the same Python interface, in modules of other names."""

    target: str
    module: ModuleType
    version: tuple[int, ...]
    dialect: Dialect

    @property
    def package(self) -> Package:
        return PACKAGES[self.target]

    @property
    def name(self) -> str:
        """Package and version."""
        return f"{self.target} {'.'.join(map(str, self.version))}"


def load_flavour(target: str) -> Flavour:
    """Import the package of "tensorrt" or "tensorrt-rtx". Raises LiraError, with the command that installs
    it, if it is missing or does not load."""
    module_name, extra = PACKAGES[target].module, PACKAGES[target].extra
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
    """Return the leading numbers of a version: (10, 3, 0) of "10.3.0.post1"."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def dialect_of(target: str, version: tuple[int, ...]) -> Dialect:
    """Return the dialect that the parser of this version takes."""
    return "cache_update" if version[:2] >= PACKAGES[target].cache_update_from else "decomposed"


def compute_capabilities(flavour: Flavour) -> dict[str, Any]:
    """Return the constants of the GPUs that TensorRT for RTX builds for, by compute capability ("8.9")."""
    known = flavour.module.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in known.items() if name.startswith("SM")}


def _how_to_get(target: str, extra: str) -> str:
    if PACKAGES[target].compiles_at_run:
        return f"pip install tensorrt-rtx, or to run engines as well {install_line(extra)}"
    return (
        "on JetPack `sudo apt install tensorrt python3-libnvinfer`, in a virtual environment made with "
        f"--system-site-packages; elsewhere {install_line(extra)}"
    )
