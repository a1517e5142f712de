"""Masks as PNG pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from lira_runtime.images import open_image
from lira_serve.mask_formats.polygons import as_mask


def mask_to_png(mask: np.ndarray) -> bytes:
    """[H, W] bool -> a PNG file of 1-bit greyscale, white for the object.

    Raises ValueError for another shape, or one without pixels.
    """
    mask = as_mask(mask)
    if 0 in mask.shape:
        raise ValueError(f"mask has shape {mask.shape}, expected at least one pixel")
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def png_to_mask(data: bytes) -> np.ndarray:
    """The bytes of a PNG file -> [H, W] bool: the pixels of at least half the full brightness.

    Transparency does not count. Raises LiraError as `open_image` does.
    """
    return np.asarray(open_image(data).convert("L")) >= 128


def png_data_uri(data: bytes) -> str:
    """The bytes of a PNG file -> a data URI, as pages and JSON take it."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
