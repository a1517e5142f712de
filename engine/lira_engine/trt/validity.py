"""Why an engine file does not load. TensorRT for RTX tells the cause; TensorRT (11.4) has no such call."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lira_engine.trt.flavour import Flavour

_DRIVER = "update NVIDIA's driver, `lira-edge doctor` names the one that is needed"
_CAUSES: Mapping[str, tuple[str, str | None]] = MappingProxyType(
    {
        "CUDA_ERROR": ("CUDA does not work here", "install NVIDIA's driver again, see `lira-edge doctor`"),
        "OLD_CUDA_DRIVER": ("the driver is too old for it", _DRIVER),
        "OLD_CUDA_RUNTIME": ("the CUDA runtime is too old for it", _DRIVER),
        "INSUFFICIENT_GPU_MEMORY": ("the GPU has too little free memory", "close other programs on it"),
        "MALFORMED_ENGINE": ("it is not an engine, or damaged", None),
        "VERSION_MISMATCH": ("another version built it", None),
        "UNSUPPORTED_CC": ("it was not built for this GPU's compute capability", None),
    }
)
"""By the name of a bit of EngineInvalidityDiagnostics, what it means and what helps, None: to build again.
The first one that is set counts: no build helps where CUDA does not work."""


def why_invalid(flavour: Flavour, runtime: Any, plan: Any, mend: str) -> str:
    """Return why `runtime` does not load `plan`, the bytes of an engine, and what helps. `mend`: how to build
    it again."""
    if hasattr(runtime, "get_engine_validity"):
        _, diagnostics = runtime.get_engine_validity(plan)
        bits = flavour.module.EngineInvalidityDiagnostics.__members__
        for name, (cause, helps) in _CAUSES.items():
            if name in bits and diagnostics & int(bits[name]):
                return f"{cause}; {helps or mend}"
    return f"it was built for another GPU or by another version; {mend}"
