"""AttrEval's picture, with words of any kind."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lira_bench.accuracy import bars
from lira_bench.accuracy.files import identity
from lira_bench.accuracy.items import Item, Question, Record
from lira_engine.errors import LiraError
from lira_runtime import rle

WORDS = ("$\\foo$", "橙色", "long " * 60, ":car:", "$")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), (200, 30, 30)).save(path, exif=exif)
    return path


def scored(picture: Path, expression: str, kind: str, **changes: Any) -> tuple[Item, Record]:
    item = Item("attributes.jsonl:1", "a.png", (Question("refseg", expression),), {}, words=WORDS)
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:20, 30:50] = True
    scores = {"kind": kind, "ranked": [[word, 0.2] for word in WORDS], "answers": [WORDS[0]]}
    answers = [{"masks": [{"rle": rle.encode(mask)}]}]
    record = {"item": item.key, "image": "a.png", "image_sha256": identity(picture), "answers": answers}
    return item, {**record, "scores": scores, **changes}


@pytest.mark.parametrize(
    "text", ["the $\\foo$ label", "$^$", "橙色 square", "نجمة", "x" * 5000, "\ttab\n\nline"]
)
def test_words_of_any_script_are_drawn(picture: Path, text: str) -> None:
    out = picture.with_name("out.png")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")  # that a font lacks
        told = bars.write(out, [scored(picture, text, "color"), scored(picture, "it", text)], picture.parent)
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"
    assert told[0] == f"wrote {out}"
    assert "out.png: its font has no" in told[1] and "橙 色" in told[1]  # among the words


def test_no_file_is_written_without_ranked_words(picture: Path) -> None:
    assert bars.write(picture.with_name("out.png"), [], picture.parent) == []
    assert not picture.with_name("out.png").exists()


def test_a_picture_that_was_replaced_is_not_drawn(picture: Path) -> None:
    with pytest.raises(LiraError, match=r"a\.png was replaced since it was asked about"):
        bars.write(
            picture.with_name("out.png"), [scored(picture, "it", "color", image_sha256="0")], picture.parent
        )
    assert not picture.with_name("out.png").exists()
