"""Options of builds for ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

from lira_engine.engines.options import Options, option
from lira_engine.errors import LiraError
from lira_engine.ort.device import PROVIDERS


@dataclass(frozen=True)
class CpuOptions(Options):
    """Options of a build for the CPU."""

    block_size: int = option(
        32, "inputs that share a scale of a quantized weight", (32, 128), weights=("quantized",)
    )
    lm_head_bits: int = option(
        4, "bits of the LM head's weights in a quantized build", (4, 8), weights=("quantized",)
    )
    encoders: str = option(
        "auto",
        "precision of the other stages in a quantized build; auto takes int8 if it is accurate and faster",
        ("auto", "fp32", "int8"),
        weights=("quantized",),
    )
    prefill: str = option(
        "int8",
        "weights of the language model for passes of many rows: in 8 bits, twice as fast, or the same",
        ("int8", "same"),
        weights=("quantized", "mixed"),
    )
    kv_cache: str = option(
        "fp32",
        "keys and values that decode steps read; int8 takes a quarter of the bytes, and ONNX Runtime 1.27",
        ("fp32", "int8"),
        weights=("quantized", "mixed"),
    )

    def check(self) -> None:
        if self.kv_cache == "int8" and self.prefill != "int8":
            raise LiraError("an int8 KV cache needs prefill int8: leave out --prefill, or --kv-cache")


@dataclass(frozen=True)
class CudaOptions(Options):
    """Options of a build for ONNX Runtime on an NVIDIA GPU."""

    provider: str = option(
        "cuda", "execution provider of all stages but the language model", tuple(PROVIDERS)
    )
    allow_fallback: bool = option(False, "accept nodes that run on the CPU")
    block_size: int = option(
        32, "inputs that share a scale of a quantized weight", (32, 64, 128), weights=("quantized",)
    )
    lm_head_bits: int = option(
        4, "bits of the LM head's weights in a quantized build", (4, 8), weights=("quantized",)
    )
    step_graph: str = option(
        "auto",
        "decode steps as CUDA graphs, whose kernels are launched all at once; auto where ONNX Runtime can "
        "capture them",
        ("auto", "off"),
    )
    int4_passes: str = option(
        "dequantize",
        "int4 matmuls of more than 16 rows: on weights that each pass writes out in fp16, or fused with what "
        "unpacks them, for which ONNX Runtime tries kernels whenever engines are opened",
        ("dequantize", "fuse"),
        weights=("quantized", "mixed"),
    )
    tiles: str = option(
        "auto",
        "tiles of an image that the semantic encoder reads in one pass; auto all, if the GPU has the memory",
        ("auto", "one"),
    )

    def check(self) -> None:
        if self.int4_passes == "fuse" and self.block_size != 32:
            raise LiraError(
                f"fused int4 passes need blocks of 32, not {self.block_size}: leave out --block-size, or "
                "--int4-passes"
            )
