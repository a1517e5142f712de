"""A picture for whole answers, where the user names none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (1200, 800)  # width, height: six tiles and the thumbnail, as many as a photograph of a camera gives


def write_sample(folder: Path) -> Path:
    """A PNG of smooth colours, the same one everywhere."""
    path = folder / "sample.png"
    if not path.exists():
        width, height = SIZE
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / (40 + 30 * i)) + np.cos(y / (60 + 20 * i)) for i in range(3)]
        Image.fromarray((np.stack(waves, -1) * 60 + 128).astype(np.uint8)).save(path)
    return path
