"""The chart of a calibration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from lira_calib import chart
from lira_calib.choosing.sensitivity import Effect
from lira_engine.errors import LiraError

EFFECTS = [
    Effect("llm/layers.0.mlp", "int4/32 gptq", 0.97, 0.995, 0.08),
    Effect("llm/layers.0.mlp", "w8a8 dynamic", 0.999, 1.0, 0.01),
    Effect("pixel_encoder/stages.0", "w8a8", 0.9, 0.99, 0.02),
]
CHOSEN = {"llm/layers.0.mlp": "int4/32 gptq", "pixel_encoder/stages.0": "float"}


def test_every_unit_is_a_row_and_chosen_forms_are_coloured(tmp_path: Path) -> None:
    path = tmp_path / "chart.svg"
    assert chart.write(path, EFFECTS, CHOSEN, "lira-nano, cIoU -0.5%") == [f"wrote {path}"]
    drawn = path.read_text()
    for effect in EFFECTS:
        assert f"{effect.unit}  {effect.option}" in drawn.replace("&#160;", " ")
    fills = re.findall(r"fill: (#\w{6})", drawn)
    assert fills.count("#e07b39") == 3  # a bar in each of three panels
    assert "#2f6fb5" not in fills  # int8 was measured and not chosen


def test_a_png_is_a_picture(tmp_path: Path) -> None:
    chart.write(tmp_path / "chart.png", EFFECTS, CHOSEN, "title")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.format == "PNG" and picture.width > 800


def test_many_units_show_the_most_harmful(tmp_path: Path) -> None:
    many = [Effect(f"llm/u{i:03d}", "w8a8", 1 - i / 1000, 1.0, 0.0) for i in range(100)]
    path = tmp_path / "chart.svg"
    chart.write(path, many, {}, "title")
    drawn = path.read_text()
    assert "llm/u099" in drawn and "llm/u040" in drawn and "llm/u039" not in drawn
    assert "60 most harmful of 100" in drawn


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LiraError, match=r"\.png or \.svg"):
        chart.check_path(tmp_path / "chart.pdf")
