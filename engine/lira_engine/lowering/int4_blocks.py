"""Weights in blocks of 4-bit integers with a scale each, as ONNX Runtime's `MatMulNBits` reads them.

A block holds `block` consecutive inputs of one output. How its scale is chosen:

- `quantize`: the value of largest magnitude / -8. That value and zero (the integer 8) are exact, all others
  are rounded to nearest.
- `quantize_symmetric`: largest magnitude / 7; -8 is not used.
- `quantize_positive`: the larger of largest / 7 and smallest / -8.

The scales of the last two are positive and exact in fp16, so that TensorRT stores the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

COLUMNS_AT_ONCE = 1024


@dataclass(frozen=True)
class Blocks:
    """A matrix [K, N] in 4 bits.

    Attributes:
        packed: [N, ceil(K / block), block / 2] uint8, the earlier input in the lower four bits. Inputs beyond
            K are zero.
        scales: [N, ceil(K / block)] float32.
    """

    packed: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class WeightBits:
    """How one weight is stored: 4 bits, or 8 as twice 4; a scale for every `block` inputs.

    Raises ValueError for other sizes.
    """

    bits: int
    block: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.block not in (16, 32, 64, 128, 256):
            raise ValueError(f"{self}: expected 4 or 8 bits and a block of 16, 32, 64, 128 or 256")


Digit = Callable[[str, ir.TensorProtocol, int, int], Blocks]
"""(name, weight [K, N], block, 0 or 1) -> the first four bits of a weight, or the second: those of its
rounding error."""


def rounded_by(round_: Callable[[np.ndarray, int], Blocks]) -> Digit:
    """Return the digits that `round_`, a function of a matrix and a block, gives."""

    def digit(name: str, stored: ir.TensorProtocol, block: int, digit: int) -> Blocks:
        weight = np.asarray(stored.numpy())
        blocks = round_(weight, block)
        return round_(residual(weight, blocks), block) if digit else blocks

    return digit


def quantize(weight: np.ndarray, block: int) -> Blocks:
    """Round a matrix [K, N] of any float dtype to blocks, `COLUMNS_AT_ONCE` outputs at a time."""
    return _quantize(weight, block, _minus_8)


def quantize_symmetric(weight: np.ndarray, block: int) -> Blocks:
    """As `quantize`, with positive scales and integers from -7 to 7."""
    return _quantize(weight, block, _symmetric)


def quantize_positive(weight: np.ndarray, block: int) -> Blocks:
    """As `quantize`, with positive scales and integers from -8 to 7."""
    return _quantize(weight, block, _positive)


def _quantize(weight: np.ndarray, block: int, round_: _Round) -> Blocks:
    starts = range(0, weight.shape[1], COLUMNS_AT_ONCE)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pieces = list(
            pool.map(lambda i: _quantize_columns(weight[:, i : i + COLUMNS_AT_ONCE], block, round_), starts)
        )
    return Blocks(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


def integers_of(blocks: Blocks, inputs: int) -> np.ndarray:
    """Return the integers [K, N] int8, -8 to 7, of `blocks`; K is `inputs`."""
    low, high = blocks.packed & 15, blocks.packed >> 4
    unsigned = np.stack([low, high], axis=-1).reshape(len(blocks.packed), -1)[:, :inputs]
    return unsigned.astype(np.int8).T - np.int8(8)


def dequantize(blocks: Blocks, inputs: int) -> np.ndarray:
    """Return the matrix [K, N] float32 that `blocks` represent; K is `inputs`."""
    low, high = blocks.packed & 15, blocks.packed >> 4
    integers = np.stack([low, high], axis=-1).reshape(*blocks.scales.shape, -1).astype(np.float32) - 8
    return (integers * blocks.scales[..., None]).reshape(len(blocks.scales), -1)[:, :inputs].T


def residual(weight: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Return the rounding error [K, N] float32 of `blocks`: quantized again, it gives another four bits."""
    out = np.empty(weight.shape, np.float32)
    for start in range(0, weight.shape[1], COLUMNS_AT_ONCE):
        some = slice(start, start + COLUMNS_AT_ONCE)
        part = Blocks(blocks.packed[some], blocks.scales[some])
        out[:, some] = weight[:, some].astype(np.float32) - dequantize(part, len(weight))
    return out


def _quantize_columns(weight: np.ndarray, block: int, round_: _Round) -> tuple[np.ndarray, np.ndarray]:
    inputs, outputs = weight.shape
    rows = np.zeros((outputs, -(-inputs // block) * block), np.float32)
    rows[:, :inputs] = weight.T
    scales, integers = round_(rows.reshape(outputs, -1, block))
    unsigned = (integers + 8).clip(0, 15).astype(np.uint8)
    return unsigned[..., 0::2] | (unsigned[..., 1::2] << 4), scales


_Round = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Groups [N, blocks, block] float32 -> scales [N, blocks] float32 and integers, rounded, in float32."""


def _minus_8(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest = np.where(groups.max(-1) >= -groups.min(-1), groups.max(-1), groups.min(-1))
    scales = largest / np.float32(-8)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    return scales, np.rint(groups * inverse[..., None])


def _symmetric(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest = np.maximum(groups.max(-1), -groups.min(-1)) / np.float32(7)
    scales = _half(np.maximum(largest, np.float32(np.finfo(np.float16).tiny)))
    return scales, np.rint(groups / scales[..., None]).clip(-7, 7)


def _positive(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest = np.maximum(groups.max(-1) / np.float32(7), groups.min(-1) / np.float32(-8))
    # A rounding error may be small: in a number that fp16 has, if not in full precision.
    scales = _half(np.maximum(largest, np.float32(np.finfo(np.float16).smallest_subnormal)))
    return scales, np.rint(groups / scales[..., None])


def _half(scales: np.ndarray) -> np.ndarray:
    return scales.astype(np.float16).astype(np.float32)
