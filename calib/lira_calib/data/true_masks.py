"""A pixel decoder that gives the masks that it was told, so that regions are those of the true masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from lira_engine.bundle.manifest import StageSpec
from lira_engine.engines.runner import Feeds, Stage, Tensor

_SHARP = 20.0  # logit of a cell that is wholly inside


def mask_logits(mask: np.ndarray, size: int) -> np.ndarray:
    """Return what a pixel decoder would give for a mask, bool [H, W]: logits [size, size] float32 of the
    image padded to a square, above 0 where at least half of a cell is inside.

    Of a mask that is too small for that, its fullest cells are inside.
    """
    height, width = mask.shape
    side = max(width, height)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), np.float32)
    square[top : top + height, left : left + width] = mask
    shrinks = size < side
    share = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    threshold = min(0.5, float(share.max()))
    logits = (np.asarray(share, np.float32) - threshold) * (2 * _SHARP)
    if mask.any():
        logits[share >= threshold] = np.maximum(logits[share >= threshold], 1.0)
    return logits


class _Given:
    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return {"mask_logits": self._logits}

    def numpy(self, name: str) -> np.ndarray:
        return self.outputs[name]  # type: ignore[return-value]


class GivenMasks(Stage):
    """Gives the masks of `give` in turn, whatever hidden states it reads."""

    name = "pixel_decoder"

    def __init__(self, spec: StageSpec, size: int) -> None:
        """`size`: sides of the logits."""
        self.input_specs, self.output_specs = spec.inputs, spec.outputs
        self._size = size
        self._left: list[np.ndarray] = []

    def give(self, masks: Sequence[np.ndarray]) -> None:
        """Set the masks, bool [H, W], of the `[SEG]` to come."""
        self._left = [mask_logits(mask, self._size)[None] for mask in masks]

    def start(self, feeds: Feeds) -> _Given:
        return _Given(self._left.pop(0))

    def close(self) -> None: ...
