"""The generated image that is measured with if the user names none."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZE = (1200, 800)  # width, height: six tiles and the thumbnail, as for a photograph


def sample_image() -> Image.Image:
    """Return an RGB image of smooth colours, the same on every machine."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (40 + 30 * i)) + np.cos(y / (60 + 20 * i)) for i in range(3)]
    return Image.fromarray((np.stack(waves, -1) * 60 + 128).astype(np.uint8))
