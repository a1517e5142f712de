"""`lira-edge calibrate`: what it refuses before any work, and its lines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lira_calib.calibrate import calibrate
from lira_calib.request import Request
from lira_engine.errors import LiraError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"vision": "fp4"}, "--vision is 'fp4', expected int8, fp8, float"),
        ({"llm": "int3"}, "--llm is 'int3', expected int4, int8, float"),
        ({"int4": "hqq"}, "--int4 is 'hqq', expected gptq, awq, nearest"),
        ({"block": 48}, "--block is 48, expected 32, 64, 128"),
        ({"sensitivity": "none"}, "--sensitivity is 'none', expected units, stages"),
        ({"budget": "mAP -1%"}, "mAP is no metric; expected one of cIoU, IoU, tokens"),
        ({"device": "orin-nano"}, "--device is for a search: give --budget"),
        ({"chart": Path("c.png")}, "--chart shows what a search measured: give --budget"),
        ({"chart": Path("c.pdf"), "budget": "cIoU -1%"}, ".png or .svg"),
        ({"vision": "float", "llm": "float"}, "leaves nothing to calibrate"),
        ({"vision": "fp8", "budget": "cIoU -1%"}, "--vision fp8 has no times"),
        ({"budget": "cIoU -1%", "device": "abacus"}, "abacus"),
    ],
)
def test_options_that_make_no_sense_are_refused_first(
    options: dict[str, object], expected: str, tmp_path: Path
) -> None:
    request = Request(tmp_path / "bundle", tmp_path / "recipe", tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(LiraError) as refused:
        calibrate(request)
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_recipe_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    request = Request(tmp_path / "bundle", tmp_path / "mine", tmp_path, overwrite=True)
    with pytest.raises(LiraError, match="did not write"):
        calibrate(request)


def test_without_pictures_it_says_what_is_needed(nano_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(LiraError) as refused:
        calibrate(Request(nano_bundle, tmp_path / "recipe"))
    assert "--images" in str(refused.value) and "lira_nano scenes --seed 3" in str(refused.value)


def test_any_other_bundle_needs_pictures_of_its_own(nano_bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(nano_bundle, tmp_path / "other")
    manifest = json.loads((other / "lira.json").read_text(encoding="utf-8"))
    (other / "lira.json").write_text(json.dumps({**manifest, "name": "LIRA-2B"}), encoding="utf-8")
    with pytest.raises(LiraError) as refused:
        calibrate(Request(other, tmp_path / "recipe"))
    assert "pictures of what the model will see" in str(refused.value)
    assert "lira_nano" not in str(refused.value)


def test_fewer_pictures_than_asked_are_an_error(
    nano_bundle: Path, calib_scenes: Path, tmp_path: Path
) -> None:
    request = Request(
        nano_bundle, tmp_path / "recipe", calib_scenes / "images", (calib_scenes,), scenes=500, held_out=8
    )
    with pytest.raises(LiraError, match="asked for 500"):
        calibrate(request)
    assert not list(tmp_path.iterdir())
