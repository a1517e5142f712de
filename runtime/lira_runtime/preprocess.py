"""Image -> the encoders' inputs; mask logits -> the image's pixels. Equal to upstream, value for value.

Two paths (upstream omg_llava/dataset/utils): the semantic encoder reads square tiles of the image squashed to
a grid, the pixel encoder reads the image padded to a square. Both resize with Pillow's bicubic, which
antialiases when it shrinks (OpenCV has no such mode) and rounds to 8 bits between its two passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance

from lira_engine.bundle.manifest import MAX_TILES, PixelSpec, RegionSpec, TileSpec
from lira_engine.errors import LiraError
from lira_runtime import arguments

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom exclusive

_BAND_ROWS = 256
_BAND_PIXELS = 1 << 22  # pixels of a large image that are processed at once
_THIN = 8  # an image narrower than 1/8 of the square is resized without its padding


def choose_grid(width: int, height: int, min_num: int, max_num: int, size: int) -> tuple[int, int]:
    """Return (columns, rows) of the tile grid closest to the image's aspect ratio.

    min_num <= columns * rows <= max_num. Of equally close grids a larger one wins only if the image has more
    than half of its pixels (tiles are `size` x `size`). Source: upstream internvl_data.py,
    find_closest_aspect_ratio.
    """
    # A set filled as in upstream: its order decides between equally close grids with equally many tiles.
    allowed = {
        (cols, rows)
        for largest in range(min_num, max_num + 1)
        for cols in range(1, largest + 1)
        for rows in range(1, largest + 1)
        if min_num <= cols * rows <= max_num
    }
    best, best_distance = (1, 1), float("inf")
    for cols, rows in sorted(allowed, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - cols / rows)
        enough_pixels = width * height > 0.5 * size * size * cols * rows
        if distance < best_distance or (distance == best_distance and enough_pixels):
            best, best_distance = (cols, rows), distance
    return best


def check_tiles(name: str, count: int | None) -> int | None:
    """Return a number of tiles, or None. Raises LiraError, which says `name`, for others than 1 to 12."""
    expected = f"a whole number from 1 to {MAX_TILES}"
    count = arguments.optional_whole(name, count, expected, 1)
    if count is not None and count > MAX_TILES:
        raise LiraError(f"{name} is {count}; expected {expected}")
    return count


def with_tiles(spec: TileSpec, max_tiles: int | None = None, min_tiles: int | None = None) -> TileSpec:
    """Return `spec` with other numbers of tiles, not counting the thumbnail; None keeps its own.

    Raises LiraError for numbers that are not 1 to 12, and for a minimum above the maximum.
    """
    max_tiles, min_tiles = check_tiles("max_tiles", max_tiles), check_tiles("min_tiles", min_tiles)
    most = spec.max_num if max_tiles is None else max_tiles
    least = min(spec.min_num, most) if min_tiles is None else min_tiles
    if least > most:
        raise LiraError(f"min_tiles is {least}; expected at most max_tiles, which is {most}")
    return replace(spec, min_num=least, max_num=most)


def tiles(image: Image.Image, spec: TileSpec) -> np.ndarray:
    """RGB image -> [T, 3, S, S] float32: the grid's tiles row by row, then the whole image as a thumbnail.

    Does not keep the aspect ratio. A single tile has no thumbnail beside it.
    """
    cols, rows = choose_grid(image.width, image.height, spec.min_num, spec.max_num, spec.size)
    size = spec.size
    grid = np.asarray(_resize(image, cols * size, rows * size))
    grid = grid.reshape(rows, size, cols, size, 3).swapaxes(1, 2).reshape(rows * cols, size, size, 3)
    if spec.use_thumbnail and rows * cols > 1:
        thumbnail = np.asarray(_resize(image, size, size))
        grid = np.concatenate([grid, thumbnail[None]])
    return _normalize(grid, spec.mean, spec.std)


def pixel_input(image: Image.Image, spec: PixelSpec) -> np.ndarray:
    """RGB image -> [1, 3, P, P] float32: padded to a square with `spec.pad_color`, resized, normalised."""
    square = _pad_and_resize(image, spec.size, (spec.pad_color[0], spec.pad_color[1], spec.pad_color[2]))
    return _normalize(np.asarray(square)[None], spec.mean, spec.std)


def highlight_crop(image: Image.Image, mask: np.ndarray, spec: RegionSpec) -> tuple[Image.Image, Box]:
    """Return the image inside the mask's bounding box, darkened outside the mask, and the box.

    mask: [H, W] bool. An empty mask gives the whole image, darkened (upstream: getbbox is None).
    """
    if mask.shape != (image.height, image.width):
        raise ValueError(f"mask is {mask.shape}, the image is {(image.height, image.width)} (height, width)")
    box = mask_box(mask) or (0, 0, image.width, image.height)
    left, top, right, bottom = box
    return _highlight(image.crop(box), mask[top:bottom, left:right], spec), box


def region_tile(crop: Image.Image, spec: TileSpec) -> np.ndarray:
    """A highlighted crop -> [1, 3, S, S] float32: one tile, squashed to a square, never a grid."""
    tile = np.asarray(_resize(crop, spec.size, spec.size))
    return _normalize(tile[None], spec.mean, spec.std)


def highlighted_tile(
    image: Image.Image, mask: np.ndarray, region: RegionSpec, spec: TileSpec
) -> tuple[np.ndarray, Box]:
    """Return `region_tile` of `highlight_crop`, and the box. Large images are processed in bands of rows."""
    box = mask_box(mask) or (0, 0, image.width, image.height)
    left, top, right, bottom = box
    rows = max(_BAND_PIXELS // (right - left), 1)
    narrow = Image.new("RGB", (spec.size, bottom - top))
    for y in range(top, bottom, rows):
        band = (left, y, right, min(y + rows, bottom))
        lit = _highlight(image.crop(band), mask[y : band[3], left:right], region)
        narrow.paste(_resize_side(lit, width=spec.size), (0, y - top))
    tile = np.asarray(_resize_side(narrow, height=spec.size))
    return _normalize(tile[None], spec.mean, spec.std), box


def mask_to_image(mask_logits: np.ndarray, width: int, height: int) -> np.ndarray:
    """Mask logits [h, w] float32 of the padded square -> [H, W] float32 at the image's size.

    The mask is where they are above 0. Bilinear with half-pixel centres to the square of max(width, height),
    as in torch.nn.functional.interpolate, then without the padding; pixels of the padding are not computed.
    """
    image = np.empty((height, width), np.float32)
    for top, band in mask_bands(mask_logits, width, height):
        image[top : top + len(band)] = band
    return image


def mask_bands(mask_logits: np.ndarray, width: int, height: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield `mask_to_image` in bands: the first row's number, and logits [rows, W] float32."""
    side = max(width, height)
    left, right, x = _bilinear(mask_logits.shape[1], side, (side - width) // 2, width)
    above, below, y = _bilinear(mask_logits.shape[0], side, (side - height) // 2, height)
    columns = mask_logits[:, left] * (1 - x) + mask_logits[:, right] * x  # [h, W]
    rows = max(_BAND_PIXELS // width, 1)
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        band = columns[above[part]] * (1 - y[part])[:, None]  # [rows, W]
        lower = columns[below[part]]
        lower *= y[part][:, None]
        band += lower
        yield top, band


def mask_box(mask: np.ndarray) -> Box | None:
    """[H, W] bool -> its bounding box, or None if it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _highlight(crop: Image.Image, mask: np.ndarray, spec: RegionSpec) -> Image.Image:
    """Return `crop`, darkened outside the mask [H, W]."""
    highlighted = ImageEnhance.Brightness(crop).enhance(spec.brightness)
    highlighted.paste(crop, (0, 0), Image.fromarray(mask.astype(np.uint8) * 255))
    return highlighted


def _bilinear(source: int, target: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for outputs start .. start + count of a resize source -> target, both neighbours and the weight
    of the second."""
    # As in torch's kernels: float32, rounded once at the end (fused multiply-add), for exact masks.
    scale = float(np.float32(source) / np.float32(target))
    position = (scale * (np.arange(start, start + count) + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    low = np.minimum(position.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), position - low.astype(np.float32)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with Pillow's bicubic, horizontally first, as Pillow did for upstream.

    From Pillow 13 on the order depends on the sizes, and the two orders differ by up to several levels.
    """
    return _resize_side(_resize_side(image, width=width), height=height)


def _resize_side(image: Image.Image, width: int | None = None, height: int | None = None) -> Image.Image:
    return image.resize((width or image.width, height or image.height), Image.Resampling.BICUBIC)


def _pad_and_resize(image: Image.Image, size: int, color: tuple[int, int, int]) -> Image.Image:
    """Centre the image in a square of `color` and resize that to size x size.

    Does not allocate the square, which takes 1.2 GB for a panorama of 20,000 x 100: pads bands of rows and
    resizes them horizontally, then resizes the narrow picture vertically.
    """
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    narrow = Image.new("RGB", (size, side), color)
    for y in range(0, image.height, _BAND_ROWS):
        band = image.crop((0, y, image.width, min(y + _BAND_ROWS, image.height)))
        if band.width * _THIN < side:
            strip, column = _resize_thin_rows(band, left, side, size, color)
            narrow.paste(strip, (column, top + y))
            continue
        if band.width < side:
            padded = Image.new("RGB", (side, band.height), color)
            padded.paste(band, (left, 0))
            band = padded
        narrow.paste(_resize_side(band, width=size), (0, top + y))
    return _resize_side(narrow, height=size)


def _resize_thin_rows(
    band: Image.Image, left: int, side: int, size: int, color: tuple[int, int, int]
) -> tuple[Image.Image, int]:
    """Pad `band` to `side` columns and resize them to `size`, for a band much narrower than `side`.

    Returns the output columns that depend on the band, and the first one's index. Pillow would read the
    padding as well, `side` squared pixels: half a minute for an image of 1 x 60,000.
    Source of the arithmetic: Pillow's Resample.c (bicubic, a = -0.5, weights in 22-bit fixed point).
    """
    scale = side / size
    stretch = max(scale, 1.0)
    first = max(int((left - 2 * stretch) / scale - 1), 0)
    last = min(int((left + band.width + 2 * stretch) / scale + 1), size)
    centre = (np.arange(first, last) + 0.5) * scale  # [N], in input pixels
    low = np.maximum((centre - 2 * stretch + 0.5).astype(int), 0)
    high = np.minimum((centre + 2 * stretch + 0.5).astype(int), side)
    taps = low + np.arange((high - low).max())[:, None]  # [taps, N], input columns
    t = np.abs((taps - centre + 0.5) / stretch)
    near, far = (1.5 * t - 2.5) * t * t + 1, ((t - 5) * t + 8) * t * -0.5 + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0)) * (taps < high)
    weights /= weights.sum(axis=0)
    fixed = np.trunc(weights * 2**22 + np.copysign(0.5, weights))

    inside = (taps >= left) & (taps < left + band.width)
    matrix = np.zeros((band.width, last - first))  # [w, N], exact in float64
    matrix[(taps - left)[inside], np.nonzero(inside)[1]] = fixed[inside]
    padding = (fixed * ~inside).sum(axis=0) * np.array(color)[:, None]  # [3, N]
    planes = np.asarray(band).swapaxes(1, 2).astype(np.float64, order="C")  # [rows, 3, w]
    sums = (planes.reshape(-1, band.width) @ matrix).reshape(band.height, 3, -1) + padding  # [rows, 3, N]
    pixels = np.clip(np.floor((sums + 2**21) * 2**-22), 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.swapaxes(1, 2))), first


def _normalize(images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, H, W]: (value / 255 - mean) / std."""
    levels = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    table = (levels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)  # [256, 3]
    planes = np.empty((images.shape[0], 3, *images.shape[1:3]), dtype=np.float32)
    for channel in range(3):
        planes[:, channel] = table[:, channel][images[..., channel]]
    return planes
