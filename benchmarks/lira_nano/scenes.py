"""Random scenes with exact masks: pictured objects and plain coloured shapes on soft textures.

`render_scene(seed, index)` is a pure function of its arguments. The layout is drawn in fractions of the side,
so a scene looks the same at every size. Only `Generator.random()` is used: its stream is the one that NumPy
keeps stable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

from lira_nano.sprites import CELL, GLYPH, sprite, sprite_names

SHAPES = ("circle", "square", "triangle", "star")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (218, 40, 44),
    "green": (42, 160, 62),
    "blue": (40, 92, 216),
    "yellow": (250, 212, 40),
    "purple": (142, 58, 184),
    "orange": (246, 130, 24),
}
BACKGROUNDS = ("gradient", "stripes", "checks", "clouds")

MIN_DIAMETER, MAX_DIAMETER = 0.28, 0.46  # of the side
MAX_TILT = 20.0  # degrees
MIN_VISIBLE = 0.85  # of an object's pixels
MIN_DX = 0.08  # between centres, of the side: left to right is unambiguous
_LAYOUT_SIZE = 128  # pixels of the grid on which visibility is checked, whatever the rendered size

TRAINING_SEED = 1
"""The stream of scenes that lira-nano is trained on, and never measured on."""

T = TypeVar("T")


@dataclass(frozen=True)
class SceneObject:
    """One object. `mask`, bool [size, size]: its visible pixels. `box_xyxy`: pixels, ends excluded.

    `center` (x, y) and `diameter` are fractions of the side; `color` is None for pictured objects.
    """

    category: str
    color: str | None
    mask: np.ndarray
    box_xyxy: tuple[int, int, int, int]
    center: tuple[float, float]
    diameter: float

    @property
    def name(self) -> str:
        return object_name(self.category, self.color)


@dataclass(frozen=True)
class Scene:
    """An image, uint8 RGB [size, size, 3], and its objects, ordered from left to right by centre."""

    seed: int
    index: int
    image: np.ndarray
    objects: tuple[SceneObject, ...]
    background: str


@dataclass(frozen=True)
class _Placed:
    category: str
    color: str | None
    gain: float  # brightness of a shape's colour
    x: float
    y: float
    diameter: float
    tilt: float  # radians


def object_name(category: str, color: str | None) -> str:
    """Return the name of an object: `red star`, `dog`."""
    return category if color is None else f"{color} {category}"


def all_names() -> tuple[str, ...]:
    """Return all object names: 10 pictured ones, 4 shapes x 6 colours."""
    return (*sprite_names(), *(object_name(shape, color) for shape in SHAPES for color in COLORS))


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of `options` by one `random()`: NumPy may change the streams of `choice` and `integers`."""
    return options[min(int(rng.random() * len(options)), len(options) - 1)]


def scene_rng(seed: int, index: int, stream: int) -> np.random.Generator:
    """Return a generator for choices about a scene, such as its questions, independent of its drawing."""
    return np.random.default_rng((seed, index, stream))


def render_scene(seed: int, index: int, size: int = 384) -> Scene:
    """Draw scene `index` of stream `seed` at `size` x `size` pixels: 2 to 4 objects with different names."""
    rng = np.random.default_rng((seed, index))
    identities = _draw_identities(rng)
    while True:
        placed = _draw_layout(rng, identities)
        if placed is not None and _all_visible(placed):
            break
    canvas, background = _draw_background(rng, size)
    masks = [_paint(canvas, item, size) for item in placed]  # later ones cover earlier ones
    for below, mask in enumerate(masks):
        for above in masks[below + 1 :]:
            mask &= ~above
    objects = [_describe(item, mask) for item, mask in zip(placed, masks, strict=True)]
    objects.sort(key=lambda item: item.center[0])
    planes = np.clip(canvas * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return Scene(seed, index, np.ascontiguousarray(planes.transpose(1, 2, 0)), tuple(objects), background)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _draw_identities(rng: np.random.Generator) -> list[tuple[str, str | None]]:
    """Return categories and colours with different names. Shapes often share one of the two, so that both
    matter."""
    count = choose(rng, (2, 3, 4))
    chosen: list[tuple[str, str | None]] = []
    while len(chosen) < count:
        shapes = [(category, color) for category, color in chosen if color is not None]
        identity: tuple[str, str | None]
        if shapes and rng.random() < 0.35:
            category, color = choose(rng, shapes)
            if rng.random() < 0.65:
                identity = (category, choose(rng, tuple(COLORS)))
            else:
                identity = (choose(rng, SHAPES), color)
        elif rng.random() < 0.56:
            identity = (choose(rng, sprite_names()), None)
        else:
            identity = (choose(rng, SHAPES), choose(rng, tuple(COLORS)))
        if identity not in chosen:
            chosen.append(identity)
    return chosen


def _draw_layout(
    rng: np.random.Generator, identities: Sequence[tuple[str, str | None]]
) -> list[_Placed] | None:
    """Place the objects one after the other; return None if there is no room for one."""
    largest = {2: MAX_DIAMETER, 3: 0.44, 4: 0.40}[len(identities)]
    placed: list[_Placed] = []
    for category, color in identities:
        diameter = _between(rng, MIN_DIAMETER, largest)
        gain = _between(rng, 0.9, 1.06)
        tilt = math.radians(_between(rng, -MAX_TILT, MAX_TILT))
        edge = 0.56 * diameter + 0.01  # a tilted corner stays inside the picture
        for _ in range(40):
            x, y = _between(rng, edge, 1 - edge), _between(rng, edge, 1 - edge)
            if all(
                abs(x - other.x) >= MIN_DX
                and math.hypot(x - other.x, y - other.y) >= 0.43 * (diameter + other.diameter)
                for other in placed
            ):
                placed.append(_Placed(category, color, gain, x, y, diameter, tilt))
                break
        else:
            return None
    return placed


def _all_visible(placed: Sequence[_Placed]) -> bool:
    """Return whether every object shows more than MIN_VISIBLE, with a margin for rasterisation at other
    sizes."""
    masks = []
    for item in placed:
        full = np.zeros((_LAYOUT_SIZE, _LAYOUT_SIZE), bool)
        rows, columns, alpha, _ = _stamp(item, _LAYOUT_SIZE)
        full[rows, columns] = alpha >= 0.5
        masks.append(full)
    covered = np.zeros_like(masks[0])
    for mask in reversed(masks):
        if np.count_nonzero(mask & covered) > (1 - MIN_VISIBLE - 0.02) * np.count_nonzero(mask):
            return False
        covered |= mask
    return True


def _stamp(item: _Placed, size: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Return an object's rows and columns, its coverage, float32 [h, w], and its premultiplied colour
    [3, h, w]."""
    reach = 0.64 * item.diameter * size + 2  # half a diameter, a tilted corner, and the antialiased rim
    cx, cy = item.x * size, item.y * size
    left, right = max(0, math.floor(cx - reach)), min(size, math.ceil(cx + reach))
    top, bottom = max(0, math.floor(cy - reach)), min(size, math.ceil(cy + reach))
    scale = 1 / (item.diameter * size)
    dx = (np.arange(left, right) + (0.5 - cx)) * scale  # pixel centres, in diameters
    dy = (np.arange(top, bottom) + (0.5 - cy)) * scale
    cos, sin = math.cos(item.tilt), math.sin(item.tilt)
    u = (dx[None, :] * cos + dy[:, None] * sin).astype(np.float32)  # right, in the object's own frame
    v = (dy[:, None] * cos - dx[None, :] * sin).astype(np.float32)  # down
    rows, columns = slice(top, bottom), slice(left, right)
    if item.color is None:
        alpha, premultiplied = _sample_sprite(item.category, u, v, item.diameter * size)
        return rows, columns, alpha, premultiplied
    distance = _shape_distance(item.category, u, v)
    alpha = np.clip(0.5 - distance * np.float32(item.diameter * size), 0, 1)
    base = np.array(COLORS[item.color], np.float32) * np.float32(item.gain / 255)
    light = np.clip(1.04 - 0.22 * v - 0.05 * u, 0.85, 1.2)  # lit from above
    light *= 1 - 0.16 * np.clip(1 + distance * 28, 0, 1)  # a slightly darker rim
    premultiplied = np.minimum(light * base[:, None, None], 1) * alpha
    return rows, columns, alpha, premultiplied


def _shape_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the signed distance (negative inside) to a shape of unit diameter with rounded corners."""
    if shape == "circle":
        return np.sqrt(u * u + v * v) - np.float32(0.49)
    if shape == "square":
        half, radius = 0.42, 0.05
        qu, qv = np.abs(u) - (half - radius), np.abs(v) - (half - radius)
        outside = np.sqrt(np.maximum(qu, 0) ** 2 + np.maximum(qv, 0) ** 2)
        return outside + np.minimum(np.maximum(qu, qv), 0) - np.float32(radius)
    if shape == "triangle":
        radius, half = 0.04, 0.43
        slope = math.sqrt(3)
        x = np.abs(u) - half
        y = half / slope - (v - half / (2 * slope))  # apex up; the second term centres its box
        folded = x + slope * y > 0
        x, y = np.where(folded, (x - slope * y) / 2, x), np.where(folded, (-slope * x - y) / 2, y)
        x = x - np.clip(x, -2 * half, 0)
        return -np.sqrt(x * x + y * y) * np.sign(y) - np.float32(radius)
    if shape == "star":
        radius, outer, inner = 0.035, 0.48, 0.48
        x, y = np.abs(u), np.float32(0.03) - v  # a five-pointed star's box is not centred on its centre
        for kx, ky in ((0.8090169943749475, -0.5877852522924731), (-0.8090169943749475, -0.5877852522924731)):
            along = 2 * np.maximum(kx * x + ky * y, 0)
            x, y = x - along * kx, y - along * ky
        x, y = np.abs(x), y - outer
        bx, by = inner * 0.5877852522924731, inner * 0.8090169943749475 - 1
        h = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, outer)
        rx, ry = x - bx * h, y - by * h
        return np.sqrt(rx * rx + ry * ry) * np.sign(y * bx - x * by) - np.float32(radius)
    raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")


def _sample_sprite(name: str, u: np.ndarray, v: np.ndarray, diameter: float) -> tuple[np.ndarray, np.ndarray]:
    """Look a picture up bilinearly, at a coarser level if it shrinks, as thin lines would break up."""
    level = 2 if diameter < GLYPH / 3 else 1 if diameter < GLYPH / 1.5 else 0
    pixels = sprite(name, level)
    side = CELL >> level
    x = np.clip(u * (GLYPH >> level) + (side / 2 - 0.5), 0, side - 1.001)
    y = np.clip(v * (GLYPH >> level) + (side / 2 - 0.5), 0, side - 1.001)
    column, row = x.astype(np.int32), y.astype(np.int32)
    fx, fy = (x - column.astype(np.float32))[..., None], (y - row.astype(np.float32))[..., None]
    flat = pixels.reshape(-1, 4)
    corner = row * side + column
    upper = flat[corner] * (1 - fx) + flat[corner + 1] * fx
    lower = flat[corner + side] * (1 - fx) + flat[corner + side + 1] * fx
    sampled = upper * (1 - fy) + lower * fy
    planes = np.ascontiguousarray(sampled.transpose(2, 0, 1))  # every later step is faster on whole planes
    return planes[3], planes[:3]


def _paint(canvas: np.ndarray, item: _Placed, size: int) -> np.ndarray:
    """Draw one object with a soft shadow on float32 [3, size, size]; return its whole mask, bool
    [size, size]."""
    rows, columns, alpha, premultiplied = _stamp(item, size)
    target = canvas[:, rows, columns]
    blur = max(1, round(0.02 * size)) * 2 + 1
    drop = max(1, round(0.012 * size))
    shadow = np.zeros_like(alpha)
    shadow[drop:] = alpha[:-drop]
    shadow = cv2.blur(cv2.blur(shadow, (blur, blur)), (blur, blur))
    target *= (1 - 0.3 * shadow) * (1 - alpha)
    target += premultiplied
    mask = np.zeros((size, size), bool)
    mask[rows, columns] = alpha >= 0.5
    return mask


def _describe(item: _Placed, mask: np.ndarray) -> SceneObject:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return SceneObject(item.category, item.color, mask, box, (item.x, item.y), item.diameter)


def _muted(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return RGB, float32 [3] in 0..1, of a hue in turns."""
    sextants = (np.array([0.0, 4.0, 2.0]) + 6 * hue) % 6
    ramp = np.clip(np.abs(sextants - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - ramp))).astype(np.float32)


def _draw_background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    """Return a texture between two muted colours, float32 [3, size, size] in 0..1, and its kind."""
    kind = choose(rng, BACKGROUNDS)
    hue, saturation, value = float(rng.random()), _between(rng, 0.06, 0.24), _between(rng, 0.62, 0.92)
    first = _muted(hue, saturation, value)
    second = _muted(
        (hue + _between(rng, -0.1, 0.1)) % 1,
        saturation * _between(rng, 0.6, 1.3),
        value - _between(rng, 0.07, 0.16),
    )
    angle = 2 * math.pi * float(rng.random())
    cos, sin = math.cos(angle), math.sin(angle)
    axis = (np.arange(size) + 0.5) / size - 0.5
    along = (axis[None, :] * cos + axis[:, None] * sin).astype(np.float32)
    slope = along * np.float32(0.7) + np.float32(0.5)
    if kind == "gradient":
        mix = slope
    elif kind == "clouds":
        mix = np.zeros((size, size), np.float32)
        for cells, weight in ((4, 0.55), (8, 0.3), (17, 0.15)):
            grid = rng.random((cells, cells)).astype(np.float32)
            mix += np.float32(weight) * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        mix = (mix - 0.5) * np.float32(1.7) + np.float32(0.5)
    else:
        period = _between(rng, 0.09, 0.2)
        wave = _soft_wave(along / period, size * period)
        if kind == "checks":
            across = (axis[:, None] * cos - axis[None, :] * sin).astype(np.float32)
            wave = wave * _soft_wave(across / period, size * period)
        mix = np.float32(0.3) * slope + np.float32(0.35) * (wave + 1)
    mix = np.clip(mix, 0, 1)
    return first[:, None, None] + mix * (second - first)[:, None, None], kind


def _soft_wave(phase: np.ndarray, pixels: float) -> np.ndarray:
    """Return a square wave of period 1 between -1 and 1, with edges about three pixels wide."""
    triangle = np.abs((phase - np.floor(phase)) * 2 - 1) - np.float32(0.5)
    return np.clip(triangle * np.float32(max(pixels / 6, 2)), -1, 1)
