"""A picture to measure with, where the user names none."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZE = (1200, 800)  # width, height: six tiles and the thumbnail, as many as a camera's photograph gives


def sample_image() -> Image.Image:
    """Smooth colours, the same ones everywhere."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (40 + 30 * i)) + np.cos(y / (60 + 20 * i)) for i in range(3)]
    return Image.fromarray((np.stack(waves, -1) * 60 + 128).astype(np.uint8))
