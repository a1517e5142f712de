"""Options of the builds by TensorRT and TensorRT for RTX."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lira_engine.engines.options import Options, option
from lira_engine.errors import LiraError
from lira_engine.trt.flavour import PACKAGES

MAX_LM_HEAD_PARTS = 64
"""A part of a large vocabulary's LM head has a thousand rows then: more parts save no memory."""


def _lm_head_parts() -> Any:
    return option(1, "matmuls that the LM head is split into: more need less memory at the build")


def _block_size(target: str) -> Any:
    sizes = PACKAGES[target].block_sizes
    return option(
        128, "inputs that share a scale of a quantized weight", sorted(sizes), weights=("quantized",)
    )


def _lm_head_bits() -> Any:
    return option(4, "bits of the LM head's weights in a quantized build", (4, 16), weights=("quantized",))


@dataclass(frozen=True)
class TensorRtOptions(Options):
    """Options of a build by TensorRT."""

    lm_head_parts: int = _lm_head_parts()
    sampling: str = option(
        "gathers", "how the pixel encoder samples: by gathers, or by NVIDIA's plugin", ("gathers", "plugin")
    )
    block_size: int = _block_size("tensorrt")
    lm_head_bits: int = _lm_head_bits()

    def check(self) -> None:
        _check_parts(self.lm_head_parts)


@dataclass(frozen=True)
class RtxOptions(Options):
    """Options of a build by TensorRT for RTX. `compute_capabilities` are sorted, without repeats."""

    lm_head_parts: int = _lm_head_parts()
    compute_capabilities: tuple[str, ...] = option(
        (),
        "compute capabilities of the GPUs to build for, such as 8.6,8.9,12.0; default: all from 8.0 on",
        argument="compute-capability",
    )
    block_size: int = _block_size("tensorrt-rtx")
    lm_head_bits: int = _lm_head_bits()

    def check(self) -> None:
        _check_parts(self.lm_head_parts)
        for text in self.compute_capabilities:
            if not re.fullmatch(r"[1-9][0-9]*\.[0-9]", text):
                raise LiraError(f"compute capability {text!r}: expected one such as 8.9")
        ordered = sorted(set(self.compute_capabilities), key=lambda text: tuple(map(int, text.split("."))))
        object.__setattr__(self, "compute_capabilities", tuple(ordered))


def _check_parts(parts: int) -> None:
    if not 1 <= parts <= MAX_LM_HEAD_PARTS:
        raise LiraError(f"LM head in {parts} parts: expected 1 to {MAX_LM_HEAD_PARTS}")
