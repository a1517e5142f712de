"""Masks as COCO run-length encoding, which pycocotools reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco

from lira_engine.errors import LiraError
from lira_runtime.images import MAX_PIXELS


def encode(mask: np.ndarray) -> dict[str, Any]:
    """[H, W] bool -> {"size": [H, W], "counts": compressed string}, ready for JSON."""
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}, expected [H, W]")
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """{"size": [H, W], "counts": string} -> [H, W] bool.

    Does not use pycocotools, which leaves pixels that no run covers uninitialised.
    Raises LiraError if the runs do not fill the mask, or if it has more pixels than an image may have.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        runs = _runs(str(rle["counts"]).encode("ascii"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LiraError(
            f"not a COCO run-length encoding ({error}), expected {{'size': [H, W], 'counts': string}}"
        ) from None
    if height * width > MAX_PIXELS:
        raise LiraError(f"run-length encoding of {height} x {width} pixels, expected at most {MAX_PIXELS:,}")
    if min(height, width, *runs) < 0 or sum(runs) != height * width:
        raise LiraError(f"run-length encoding covers {sum(runs)} pixels, expected {height} x {width}")
    inside = np.arange(len(runs)) % 2 == 1  # runs of background and object in turn, column after column
    return np.repeat(inside, runs).reshape(width, height).T


def _runs(counts: bytes) -> list[int]:
    """Return the lengths of the runs. COCO's code: 5 bits a character, offset 48; bit 32 = more follows, bit
    16 = sign; from the fourth run on, the difference to the run before last."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"unexpected character {chr(character)!r} in counts")
        if shift > 60:
            raise ValueError("a run in counts has no end")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("counts end in the middle of a number")
    return runs
