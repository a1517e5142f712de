"""The ten pictured objects of the scenes: one sheet of glyphs, shipped beside this file.

`sprites.png` was rendered from a colour emoji font, so that scenes do not depend on an installed font.
`python -m lira_nano.sprites FONT` regenerates it (the licence of the glyphs is in sprites.LICENSE).
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent
CELL = 128  # pixels of a cell of the sheet
GLYPH = 120  # pixels of the longer side of a glyph in its cell
STRIKE = 109  # the only bitmap size that Noto Color Emoji holds

# Chosen to differ in outline and in colour, each with a one-word name.
EMOJI = {
    "dog": "\U0001f436",
    "cat": "\U0001f431",
    "penguin": "\U0001f427",
    "fish": "\U0001f41f",
    "car": "\U0001f697",
    "tree": "\U0001f333",
    "flower": "\U0001f33b",
    "house": "\U0001f3e0",
    "ball": "\u26bd",
    "mushroom": "\U0001f344",
}


def render_sprites(font_path: str | Path, folder: str | Path = FOLDER) -> None:
    """Write sprites.png (RGBA, one row of cells) and sprites.json from a colour emoji font with 109 px
    strikes. Raises ValueError for a font without one of the glyphs."""
    font = ImageFont.truetype(str(font_path), STRIKE)
    sheet = Image.new("RGBA", (CELL * len(EMOJI), CELL))
    for cell, character in enumerate(EMOJI.values()):
        drawn = _draw_glyph(character, font)
        # The box of the solid pixels, so that faint edges do not shift the glyph.
        box = drawn.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox()
        if box is None:
            raise ValueError(f"{font_path} has no glyph for {character!r}")
        glyph = drawn.crop(box)
        scale = GLYPH / max(glyph.size)
        width, height = (max(1, round(side * scale)) for side in glyph.size)
        glyph = glyph.convert("RGBa").resize((width, height), Image.Resampling.BICUBIC).convert("RGBA")
        sheet.paste(glyph, (cell * CELL + (CELL - width) // 2, (CELL - height) // 2))
    folder = Path(folder)
    sheet.save(folder / "sprites.png", optimize=True)
    index = {"cell": CELL, "glyph": GLYPH, "names": list(EMOJI), "characters": EMOJI}
    (folder / "sprites.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _draw_glyph(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return the glyph, RGBA, 2 CELL x 2 CELL. Pillow darkens the edge of a glyph on a transparent canvas, so
    draw it on black and on white: the difference is the transparency."""
    black, white = (Image.new("RGB", (2 * CELL, 2 * CELL), shade) for shade in ("black", "white"))
    for canvas in (black, white):
        ImageDraw.Draw(canvas).text((CELL // 2, CELL // 2), character, font=font, embedded_color=True)
    premultiplied, over_white = np.asarray(black, np.float32), np.asarray(white, np.float32)
    alpha = 255 - (over_white - premultiplied).mean(axis=2, keepdims=True)
    color = np.clip(premultiplied * 255 / np.maximum(alpha, 1), 0, 255)
    return Image.fromarray(np.concatenate([color, alpha], axis=2).round().astype(np.uint8), "RGBA")


@lru_cache(maxsize=1)
def sprite_names() -> tuple[str, ...]:
    """Return the names of the sprites, in sheet order."""
    return tuple(json.loads((FOLDER / "sprites.json").read_text(encoding="utf-8"))["names"])


@lru_cache(maxsize=64)
def sprite(name: str, level: int = 0) -> np.ndarray:
    """Return a premultiplied glyph, float32 [side, side, 4] in 0..1, side = CELL / 2**level, with a clear
    border."""
    if level:
        finer = sprite(name, level - 1)
        half = finer.shape[0] // 2
        return finer.reshape(half, 2, half, 2, 4).mean(axis=(1, 3), dtype=np.float32)
    cell = sprite_names().index(name)
    with Image.open(FOLDER / "sprites.png") as sheet:
        crop = sheet.crop((cell * CELL, 0, (cell + 1) * CELL, CELL))
    pixels = np.array(crop, np.float32) / np.float32(255)
    pixels[..., :3] *= pixels[..., 3:]
    return pixels


if __name__ == "__main__":
    render_sprites(sys.argv[1])
