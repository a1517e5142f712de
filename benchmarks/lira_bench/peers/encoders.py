"""The encoders of a bundle, ours or a peer's: their time, and their errors on the check vectors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.accuracy import rms_error

STAGES = ("semantic_encoder", "pixel_encoder")
"""A tile of the image, and the image in one piece."""


class Encoders:
    """Both encoders on the inputs of the bundle's check vectors, a tile or an image at a time.

    Derived classes implement `run`.
    """

    def __init__(self, bundle: Path) -> None:
        opened = Bundle.open(bundle, "sizes")
        self._vectors = {stage: opened.check_vectors(stage) for stage in STAGES}

    def run(self, stage: str, pixels: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return all outputs of a stage for pixels [1, 3, S, S], in host memory."""
        raise NotImplementedError

    def check(self) -> dict[str, float]:
        """Return each stage's largest error of a float output, RMS of the difference over that of the
        recorded one, and of each other output ("query_valid") the share that differs."""
        errors: dict[str, float] = {}
        for stage, vectors in self._vectors.items():
            found = [self.run(stage, pixels) for pixels in self._pixels(stage)]
            for name, expected in vectors.outputs.items():
                array = np.concatenate([one[name] for one in found])
                if np.issubdtype(expected.dtype, np.floating):
                    errors[stage] = max(errors.get(stage, 0.0), rms_error(array, expected))
                else:
                    errors[name] = float((array != expected).mean())
        return errors

    def turn(self) -> dict[str, float]:
        """Return each stage's seconds for one of its inputs, the mean over all of them."""
        seconds = {}
        for stage in STAGES:
            pixels = self._pixels(stage)
            started = time.perf_counter()
            for one in pixels:
                self.run(stage, one)
            seconds[stage] = (time.perf_counter() - started) / len(pixels)
        return seconds

    def _pixels(self, stage: str) -> list[np.ndarray]:
        pixels = self._vectors[stage].inputs["pixel_values"]
        return [pixels[i : i + 1] for i in range(len(pixels))]

    def close(self) -> None:
        """Free the stages' memory."""
