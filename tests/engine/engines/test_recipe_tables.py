"""`lira-edge inspect RECIPE`: blocks that are stored alike are one row, and the search's record is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lira_engine import LiraError
from lira_engine.engines.recipe import (
    HELD_OUT,
    Budget,
    Form,
    Recipe,
    Smoothing,
    StageRecipe,
    codes_key,
    scales_key,
    smoothing_key,
    write_recipe,
)
from lira_engine.inspect import describe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "recipe"
    (folder / HELD_OUT).mkdir(parents=True)
    (folder / HELD_OUT / "questions.json").write_text("{}")
    forms = {f"layers.{n}.mlp.up": Form("int4", 32, "gptq") for n in (0, 1, 2, 5)}
    forms |= {"layers.3.mlp.up": Form("w8a8", range=(0.0, 1.0), dynamic=True), "lm_head": Form("int8", 32)}
    tensors = {codes_key(n): np.zeros((64, 4, 16), np.uint8) for n, f in forms.items() if f.method == "gptq"}
    tensors |= {scales_key(n[: -len(".codes")]): np.zeros((64, 4), np.float16) for n in list(tensors)}
    moved = tuple(Smoothing(f"layers.{n}", (f"layers.{n}.norm",), ("layers.3.mlp.up",)) for n in range(2))
    tensors |= {smoothing_key(one.name): np.zeros(128, np.float32) for one in moved}
    search = {
        "timed_on": "a CPU, 2 threads",
        "seconds": {"record": 17.08, "search": 261.0},
        "decision": {
            "method": "search",
            "effects": [{"unit": "llm/layers.0.mlp", "loss": 0.00123}, {"unit": "sefe/model", "tokens": 1}],
            "floats": {f"unit {n}": "no form is faster" for n in range(9)},
        },
    }
    data = {"pictures": {f"{n}.png": "ab" * 32 for n in range(10)}, "seed": 3, "questions": ["a", "b"]}
    write_recipe(
        Recipe(
            "nano", {"llm.onnx": "0" * 64}, {"llm": StageRecipe(forms, moved, tensors)},
            Budget("cIoU -0.5%", "ciou", 0.005), data=data, tools={"lira-edge": "0.1.0"}, search=search,
        ),
        folder,
    )  # fmt: skip
    return folder


def test_forms_are_grouped_by_block(recipe: Path) -> None:
    tables = dict(describe(recipe))
    assert tables["llm: weights, form, number, bytes in the recipe"] == [
        ("layers.0-2,5.mlp.up", "int4/32 gptq", "4", "18.0 KiB"),
        ("layers.3.mlp.up", "w8a8 dynamic", "1", "computed at the build"),
        ("lm_head", "int8/32", "1", "computed at the build"),
        ("scales moved into weights", "smoothing", "2", "1.0 KiB"),
    ]
    about = dict(tables["recipe for nano"])
    assert about["budget"] == "cIoU -0.5%" and about["made with"] == "lira-edge 0.1.0"
    assert re.fullmatch(r"2, [\d.]+ KiB; 1 of them in held_out/", about["files"])
    assert re.fullmatch(r"[0-9a-f]{12}", about["digest"])


def test_data_and_search_are_shown_whatever_they_hold(recipe: Path, printed_by: Callable[..., str]) -> None:
    tables = dict(describe(recipe / "recipe.json", verify=True))
    assert tables["data"] == [
        ("pictures", ", ".join(f"{n}.png {'ab' * 6}" for n in range(8)) + ", and 2 more"),
        ("seed", "3"),
        ("questions", "a, b"),
    ]
    assert tables["search"] == [("timed_on", "a CPU, 2 threads"), ("seconds", "record 17.08, search 261")]
    assert tables["search: decision"] == [("method", "search")]
    assert tables["search: decision: effects"] == [
        ("unit", "loss", "tokens"),
        ("llm/layers.0.mlp", "0.00123", ""),
        ("sefe/model", "", "1"),
    ]
    assert tables["search: decision: floats"][8] == ("unit 8", "no form is faster")
    assert "layers.0-2,5.mlp.up" in printed_by("inspect", str(recipe))


def test_a_damaged_recipe_is_refused(recipe: Path) -> None:
    (recipe / HELD_OUT / "questions.json").write_text("[]")
    with pytest.raises(LiraError, match=r"questions\.json was altered: .*; calibrate again"):
        describe(recipe)
