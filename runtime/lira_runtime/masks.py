"""A mask that is decoded when somebody looks at it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property

import numpy as np

from lira_runtime import preprocess


class Mask:
    """One `[SEG]`'s mask on the image.

    First access waits for the pixel decoder. TensorRT has been at it since `[SEG]`, beside the language
    model; ONNX Runtime begins now, and a mask that nobody asks for costs it nothing. Only the decoder's small
    logits and the binary mask are kept, so that many masks of a large photograph stay affordable.
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
        """[h, w] float32: what the pixel decoder gives, at a quarter of its input size, padding included."""
        with self._lock:
            if self._decode is not None:
                self._decoder_logits = self._decode()
                self._decode = None  # frees the image features once no mask needs them
        assert self._decoder_logits is not None
        return self._decoder_logits

    @property
    def logits(self) -> np.ndarray:
        """[H, W] float32 at the image's size; computed anew at each call."""
        return preprocess.mask_to_image(self.decoder_logits, self.width, self.height)

    @cached_property
    def _binary_and_score(self) -> tuple[np.ndarray, float]:
        logits = self.logits
        binary = logits > 0
        inside = logits[binary]
        score = float(np.mean(1 / (1 + np.exp(-inside.astype(np.float64))))) if inside.size else 0.0
        return binary, score

    @property
    def binary(self) -> np.ndarray:
        """[H, W] bool: logit > 0, that is, probability > 0.5."""
        return self._binary_and_score[0]

    @property
    def score(self) -> float:
        """Mean probability inside the mask; 0.0 for an empty mask."""
        return self._binary_and_score[1]

    @cached_property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """Bounding box in pixels, right and bottom exclusive; None for an empty mask."""
        columns = np.flatnonzero(self.binary.any(axis=0))
        rows = np.flatnonzero(self.binary.any(axis=1))
        if not rows.size:
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
