"""Weights in blocks of 4-bit integers with a scale each, as ONNX Runtime's `MatMulNBits` reads them.

A block holds `block` consecutive inputs of one output. Its scale is the value of largest magnitude / -8: that
value and zero (the integer 8) are exact, all others are rounded to nearest.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

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


def quantize(weight: np.ndarray, block: int) -> Blocks:
    """Round a matrix [K, N] of any float dtype to blocks, `COLUMNS_AT_ONCE` outputs at a time."""
    starts = range(0, weight.shape[1], COLUMNS_AT_ONCE)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pieces = list(
            pool.map(lambda i: _quantize_columns(weight[:, i : i + COLUMNS_AT_ONCE], block), starts)
        )
    return Blocks(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


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


def _quantize_columns(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    inputs, outputs = weight.shape
    rows = np.zeros((outputs, -(-inputs // block) * block), np.float32)
    rows[:, :inputs] = weight.T
    groups = rows.reshape(outputs, -1, block)
    largest = np.where(groups.max(-1) >= -groups.min(-1), groups.max(-1), groups.min(-1))
    scales = largest / np.float32(-8)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    integers = np.rint(groups * inverse[..., None]) + 8
    integers = integers.clip(0, 15).astype(np.uint8)
    return integers[..., 0::2] | (integers[..., 1::2] << 4), scales
