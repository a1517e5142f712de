"""A mask that is decoded at first access."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from lira_runtime import preprocess, rle

_KEPT_AS_IT_IS = 1 << 24
"""Pixels. A larger binary mask is kept as bits, and unpacked at each access."""


class Mask:
    """One `[SEG]`'s mask on the image.

    The first access waits for the pixel decoder. TensorRT starts it at `[SEG]`, beside the language model;
    ONNX Runtime starts it at the access, so a mask that nobody accesses costs nothing. Only the decoder's
    small logits and the binary mask are kept, to save memory with many masks of a large photograph.
    """

    def __init__(self, decode: Callable[[], np.ndarray], width: int, height: int) -> None:
        """`decode` waits for the pixel decoder: () -> logits [h, w] float32 of the padded square image."""
        self._decode: Callable[[], np.ndarray] | None = decode
        self._decoder_logits: np.ndarray | None = None
        self._lock = threading.Lock()
        self.width = width
        self.height = height

    @property
    def decoder_logits(self) -> np.ndarray:
        """[h, w] float32: the pixel decoder's output, at a quarter of its input size, with the padding."""
        with self._lock:
            if self._decode is not None:
                self._decoder_logits = self._decode()
                self._decode = None  # frees the image features once no mask needs them
        assert self._decoder_logits is not None
        return self._decoder_logits

    @property
    def logits(self) -> np.ndarray:
        """[H, W] float32 at the image's size; computed at each access."""
        return preprocess.mask_to_image(self.decoder_logits, self.width, self.height)

    @cached_property
    def _binary_and_score(self) -> tuple[np.ndarray, float]:
        # In bands, so that the memory for logits does not grow with the photograph.
        binary = np.empty((self.height, self.width), bool)
        total, count = 0.0, 0
        for top, logits in preprocess.mask_bands(self.decoder_logits, self.width, self.height):
            above = np.greater(logits, 0, out=binary[top : top + len(logits)])
            inside = logits[above].astype(np.float64)
            total += float(np.sum(1 / (1 + np.exp(-inside))))
            count += inside.size
        kept = np.packbits(binary) if binary.size > _KEPT_AS_IT_IS else binary
        return kept, total / count if count else 0.0

    @property
    def binary(self) -> np.ndarray:
        """[H, W] bool: logit > 0, that is, probability > 0.5."""
        kept = self._binary_and_score[0]
        if kept.dtype == bool:
            return kept
        bits = np.unpackbits(kept, count=self.height * self.width)
        return bits.view(bool).reshape(self.height, self.width)

    @property
    def score(self) -> float:
        """Mean probability inside the mask; 0.0 for an empty mask."""
        return self._binary_and_score[1]

    @cached_property
    def counts(self) -> str:
        """The binary mask in COCO's run-length encoding; encoded once."""
        return str(rle.encode(self.binary)["counts"])

    @property
    def rle(self) -> dict[str, Any]:
        """{"size": [H, W], "counts": string}, ready for JSON, as `lira_runtime.rle` reads it."""
        return {"size": [self.height, self.width], "counts": self.counts}

    @cached_property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """Bounding box in pixels, right and bottom exclusive; None for an empty mask."""
        return preprocess.mask_box(self.binary)

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps, by what was accessed: the decoder's logits, the binary mask, its runs."""
        kept = [] if self._decoder_logits is None else [self._decoder_logits]
        if "_binary_and_score" in self.__dict__:
            kept.append(self._binary_and_score[0])
        return sum(array.nbytes for array in kept) + len(self.__dict__.get("counts", ""))
