"""Where ONNX Runtime computes, and which memory keeps what stays there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lira_engine.errors import LiraError
from lira_engine.system.cache import cache_folder
from lira_engine.system.extras import install_line

_CUDA = "CUDAExecutionProvider"
PROVIDERS: Mapping[str, str] = MappingProxyType(
    {
        "cuda": _CUDA,
        "tensorrt": "TensorrtExecutionProvider",
        "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    }
)
"""Execution providers for NVIDIA GPUs, as --provider names them."""


@dataclass(frozen=True)
class Device:
    """An execution provider with the memory that it works in. What runs on one runs on any other alike.

    Attributes:
        providers: execution providers whose nodes are on the device, the preferred one first.
        memory: ONNX Runtime's name of the device's memory, "cpu" or "cuda".
        allow_fallback: whether nodes may run elsewhere. See `lira_engine.ort.placement`.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    memory: str = "cpu"
    allow_fallback: bool = False

    @property
    def for_cache(self) -> Device:
        """The device of a graph whose caches are updated where they are.

        TensorRT's engines read a cache from one buffer and write it to another, so that what holds one stays
        with the CUDA provider.
        """
        if _CUDA in self.providers:
            return Device((_CUDA,), self.memory, self.allow_fallback)
        return self

    def session_providers(self) -> list[tuple[str, dict[str, str]]]:
        """What a session is given. The CPU provider is last: without it a node that no other takes would be
        an error that does not name the node."""
        names = (*self.providers, "CPUExecutionProvider")
        return [(name, _options(name)) for name in dict.fromkeys(names)]


CPU = Device()


def cuda_device(provider: str = "cuda", allow_fallback: bool = False) -> Device:
    """The NVIDIA GPU of this machine, by one of `PROVIDERS`.

    Raises LiraError where this ONNX Runtime does not have it, with the line that installs it.
    """
    if provider not in PROVIDERS:
        raise LiraError(f"provider {provider!r}: expected {', '.join(PROVIDERS)}")
    from lira_engine.ort.library import onnxruntime  # which says how it is installed, where it is missing

    wanted = tuple(dict.fromkeys((PROVIDERS[provider], _CUDA)))
    available = onnxruntime.get_available_providers()
    lacking = [name for name in wanted if name not in available]
    if lacking:
        mend = f"pip uninstall -y onnxruntime, then {install_line('cuda')}"
        if _CUDA in available:
            mend = "take --provider cuda, or an onnxruntime-gpu that was built with it"
        raise LiraError(
            f"target cuda needs {' and '.join(lacking)}, but onnxruntime {onnxruntime.__version__} has "
            f"{', '.join(available)}: {mend}"
        )
    return Device(wanted, "cuda", allow_fallback)


def _options(provider: str) -> dict[str, str]:
    if provider == _CUDA:
        return {
            "use_tf32": "0",  # 10 bits of mantissa in products: fp32 would not be fp32
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",  # trying all of them takes the first run half a minute
        }
    if provider == PROVIDERS["tensorrt"]:  # it compiles when a session opens
        folder = str(cache_folder() / "onnxruntime-tensorrt")
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    return {}
