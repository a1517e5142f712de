"""The device of an ONNX Runtime session: its execution providers and its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from lira_engine.errors import LiraError
from lira_engine.system.cache import cache_folder, own_folder
from lira_engine.system.extras import install_line

_CUDA = "CUDAExecutionProvider"
PROVIDERS: Mapping[str, str] = MappingProxyType(
    {
        "cuda": _CUDA,
        "tensorrt": "TensorrtExecutionProvider",
        "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    }
)
"""Execution providers for NVIDIA GPUs, by their names for --provider."""


@dataclass(frozen=True)
class Device:
    """A processor with its memory. The same code runs stages on all of them.

    Attributes:
        providers: execution providers that run nodes on the device, the preferred one first.
        memory: ONNX Runtime's name of the device's memory, "cpu" or "cuda".
        allow_fallback: whether nodes may run elsewhere. See `lira_engine.ort.placement`.
        tf32: whether fp32 matmuls and convolutions may round what they multiply to TF32, whose mantissa has
            10 bits as fp16's, and fp32's 23. See `_options`.
        keeps_engines: whether what TensorRT's provider compiles stays in the user's cache folder.
        captures: whether runs are captured as CUDA graphs. See `lira_engine.ort.step_graph`.
        fuses_int4: whether int4 matmuls of any number of rows are fused with what unpacks their weights.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    memory: str = "cpu"
    allow_fallback: bool = False
    tf32: bool = False
    keeps_engines: bool = True
    captures: bool = False
    fuses_int4: bool = False

    @property
    def for_cache(self) -> Device:
        """The device of a graph that updates its caches in place.

        TensorRT reads a cache from one buffer and writes it to another, so the CUDA provider runs such a
        graph.
        """
        if _CUDA in self.providers:
            return replace(self, providers=(_CUDA,))
        return self

    def session_providers(self) -> list[tuple[str, dict[str, str]]]:
        """Return a session's providers with their options. The CPU provider is last: without it, a node that
        no other provider takes raises an error that does not name the node."""
        names = (*self.providers, "CPUExecutionProvider")
        return [(name, self._options(name)) for name in dict.fromkeys(names)]

    def _options(self, provider: str) -> dict[str, str]:
        """Return the options of a provider.

        `use_tf32=0` does more than its name says: ONNX Runtime's Conv on cuDNN 9 (providers/cuda/nn/conv.cc)
        then takes no plan that uses tensor cores, for fp16 neither, as long as cuDNN has another one. Matmuls
        in fp16 do not read it: only cuBLAS's fp32 calls do (shared_inc/fpgeneric.h). So fp32 builds alone pay
        for exact products. What an fp16 build multiplies in fp32 (sums too long for fp16, weights beyond its
        range) needs no more than fp16's mantissa. Read in the source, not measured on a card.
        """
        if provider == _CUDA:
            return {
                "use_tf32": "1" if self.tf32 else "0",
                **({"enable_cuda_graph": "1"} if self.captures else {}),
                "arena_extend_strategy": "kSameAsRequested",
                # An exhaustive search takes the first run half a minute.
                "cudnn_conv_algo_search": "HEURISTIC",
            }
        if provider == PROVIDERS["tensorrt"]:  # it compiles when a session opens
            try:
                folder = str(own_folder(cache_folder() / "onnxruntime-tensorrt"))
            except LiraError:  # engines are code: another user's are not taken
                return {"trt_engine_cache_enable": "0", "trt_timing_cache_enable": "0"}
            return {
                "trt_engine_cache_enable": "1" if self.keeps_engines else "0",
                "trt_engine_cache_path": folder,
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": folder,
            }
        return {}

    def session_entries(self) -> dict[str, str]:
        """Return entries of a session's configuration."""
        return {"ep.cuda.fpa_intb_gemm": "1"} if self.fuses_int4 else {}


CPU = Device()


def cuda_device(precision: str, provider: str = "cuda", allow_fallback: bool = False) -> Device:
    """Return this machine's NVIDIA GPU with one of `PROVIDERS`, for engines of a build's precision.

    Raises LiraError, with the command that installs it, if this ONNX Runtime lacks the provider.
    """
    if provider not in PROVIDERS:
        raise LiraError(f"provider {provider!r}: expected {', '.join(PROVIDERS)}")
    from lira_engine.ort.package import onnxruntime

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
    return Device(wanted, "cuda", allow_fallback, tf32=precision != "fp32")
