"""A recipe comes back as it was written, and a damaged, edited or foreign one is refused with the mend."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import sha256_of
from lira_engine.engines.recipe import (
    RECIPE_NAME,
    TENSORS_NAME,
    Budget,
    Form,
    Recipe,
    Smoothing,
    StageRecipe,
    codes_key,
    read_recipe,
    scales_key,
    smoothing_key,
    sources_of,
    write_recipe,
)
from lira_engine.errors import LiraError

PACKED = np.arange(16, dtype=np.uint8).reshape(1, 1, 16)
SCALES = np.full((1, 1), 0.25, np.float16)
SMOOTHING = Smoothing("layers.0.attention", ("layers.0.attention_norm",), ("layers.0.q", "layers.0.k"))


@pytest.fixture
def recipe(small_bundle: Bundle) -> Recipe:
    llm = StageRecipe(
        {
            "layers.0.q": Form("int4", 32, "gptq"),
            "layers.0.k": Form("w8a8", range=(-1.5, 2.0), dynamic=True),
        },
        (SMOOTHING,),
        {
            codes_key("layers.0.q"): PACKED,
            scales_key("layers.0.q"): SCALES,
            smoothing_key(SMOOTHING.name): np.array([1.0, 2.0], np.float32),
        },
    )
    return Recipe(
        small_bundle.manifest.name,
        sources_of(small_bundle),
        {"llm": llm},
        Budget("cIoU -0.5%", "ciou", 0.005),
        data={"images": 3},
        tools={"onnxruntime": "1.32.0"},
        search={"evaluations": 4},
    )


@pytest.fixture
def small_bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture
def folder(recipe: Recipe, tmp_path: Path) -> Path:
    folder = tmp_path / "recipe"
    (folder / "held_out").mkdir(parents=True)
    (folder / "held_out" / "answers.json").write_text("{}")
    write_recipe(recipe, folder)
    return folder


def test_a_recipe_comes_back_as_written(recipe: Recipe, folder: Path) -> None:
    found = read_recipe(folder)
    same = ("bundle", "sources", "budget", "data", "tools", "search")
    assert all(getattr(found, name) == getattr(recipe, name) for name in same)
    llm = found.stage("llm")
    assert (llm.forms, llm.smoothing) == (recipe.stage("llm").forms, (SMOOTHING,))
    np.testing.assert_array_equal(llm.smoothing_scale(SMOOTHING), [1.0, 2.0])
    packed, scales = llm.codes("layers.0.q") or pytest.fail("no codes")
    np.testing.assert_array_equal(packed, PACKED)
    assert scales.dtype == np.float32 and scales.tolist() == [[0.25]]
    assert set(found.files) == {TENSORS_NAME, "held_out/answers.json"}
    assert not found.stage("sefe")


def test_a_file_name_in_the_folder_is_read_as_the_recipe(folder: Path) -> None:
    assert read_recipe(folder / RECIPE_NAME).digest == read_recipe(folder).digest != ""


def test_a_recipe_fits_its_own_bundle_only(folder: Path, small_bundle: Bundle) -> None:
    found = read_recipe(folder)
    found.check_bundle(small_bundle)
    sefe = small_bundle.manifest.stages["sefe"].file
    other = Recipe(found.bundle, {**found.sources, sefe: "0" * 64}, found.stages)
    with pytest.raises(LiraError, match=rf"for bundle \S+, whose {sefe} is 0{{12}}; .*: calibrate again"):
        other.check_bundle(small_bundle)


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / RECIPE_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("stages", "llm", "forms", "layers.0.q", "block", to=64), "was edited"),
        (_set("budget", "loss", to=0.5), "was edited"),
        (_set("digest", to="0"), "was edited"),
        (_set("files", to={}), "was edited"),
        (_set("format", to="lira-bundle"), "is not a recipe"),
        (_set("format_version", to=2), "has format version 2, expected 1"),
    ],
)
def test_an_edited_recipe_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    _edit(folder, change)
    with pytest.raises(LiraError, match=rf"{said}.*lira-edge calibrate"):
        read_recipe(folder)


def test_a_recipe_with_other_scales_is_refused(folder: Path) -> None:
    path = folder / TENSORS_NAME
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(LiraError, match=rf"{TENSORS_NAME} was altered.*lira-edge calibrate"):
        read_recipe(folder)


def test_a_missing_file_of_a_recipe_is_named(folder: Path) -> None:
    (folder / "held_out" / "answers.json").unlink()
    with pytest.raises(LiraError, match=r"held_out/answers\.json is missing; calibrate again"):
        read_recipe(folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / RECIPE_NAME).write_bytes(text)
    with pytest.raises(LiraError, match=r"recipe\.json .*lira-edge calibrate"):
        read_recipe(tmp_path)
    with pytest.raises(LiraError, match=r"holds no recipe\.json"):
        read_recipe(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "int2"}, "kind 'int2' of a recipe: expected int4, int8, w8a8, fp8"),
        ({"kind": "int4"}, "block None of a recipe: expected 32, 64, 128"),
        ({"kind": "int4", "block": 48}, "block 48"),
        ({"kind": "w8a8"}, "range None of w8a8: expected two numbers"),
        ({"kind": "fp8", "range": (1.0,)}, "expected two numbers"),
        ({"kind": "w8a8", "range": (2.0, 1.0)}, "expected the smaller number first"),
        ({"kind": "fp8", "range": (-1.0, 1.0), "block": 32}, "block 32 of fp8: expected none"),
        ({"kind": "int4", "block": 32, "method": "guess"}, "method 'guess'"),
    ],
)
def test_a_form_that_does_not_exist_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(LiraError, match=said):
        Form(**wrong)


def test_a_form_says_itself_in_a_few_words() -> None:
    assert Form("int4", 32, "gptq").text() == "int4/32 gptq"
    assert Form("w8a8", range=(-3.0, 2.0), dynamic=True).text() == "w8a8 dynamic"
    assert Form("w8a8", range=(-3.0, 2.0)).largest == 3.0


def test_a_tensor_that_a_recipe_lacks_is_named(recipe: Recipe, tmp_path: Path) -> None:
    part = recipe.stage("llm")
    tensors = {name: array for name, array in part.tensors.items() if not name.endswith(".scales")}
    less = Recipe(recipe.bundle, recipe.sources, {"llm": StageRecipe(part.forms, part.smoothing, tensors)})
    write_recipe(less, tmp_path)
    with pytest.raises(LiraError, match=r"lacks llm/layers\.0\.q\.scales: calibrate again"):
        read_recipe(tmp_path).stage("llm").codes("layers.0.q")


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x08" + bytes(7) + b'{"a": 1}'])
def test_tensors_that_are_none_are_refused_though_their_hash_is_right(folder: Path, content: bytes) -> None:
    (folder / TENSORS_NAME).write_bytes(content)
    found = json.loads((folder / RECIPE_NAME).read_text())
    found["files"][TENSORS_NAME] = {"sha256": sha256_of(folder / TENSORS_NAME), "bytes": len(content)}
    body = {key: value for key, value in found.items() if key not in ("format", "format_version", "digest")}
    found["digest"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / RECIPE_NAME).write_text(json.dumps(found))
    with pytest.raises(LiraError, match=rf"{TENSORS_NAME} cannot be read \(.+\): calibrate again"):
        read_recipe(folder)
