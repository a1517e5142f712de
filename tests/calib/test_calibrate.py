"""From scenes to a recipe on lira-nano: as asked, by a search, and killed in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console

from lira_calib import calibrate as verb
from lira_calib.calibrate import Result, calibrate
from lira_calib.choosing import costs
from lira_calib.choosing.budget import use
from lira_calib.choosing.timing import FLOAT, Product
from lira_calib.data.workfolder import work_path
from lira_calib.methods.rules import Template
from lira_calib.report import figures, print_result
from lira_calib.request import Request
from lira_engine.build import build
from lira_engine.engines.recipe import RECIPE_NAME, read_recipe
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from lira_engine.bundle.bundle import Bundle

COUNT, HELD_OUT = 4, 2


@pytest.fixture(scope="module")
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Changes what takes time only: rounds of timings, and the search for ranges by entropy."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lira_calib.choosing.latency.ROUNDS", 1)
        patched.setattr("lira_calib.methods.statistics.METHODS", ("minmax", "percentile"))
        yield patched


@pytest.fixture(scope="module")
def request_for(
    calib_bundle: Bundle, calib_scenes: Path, quick: pytest.MonkeyPatch
) -> Callable[..., Request]:
    """request_for(folder, option=...) asks for a recipe of few scenes."""

    def made(output: Path, **options: Any) -> Request:
        return Request(
            calib_bundle.path,
            output,
            calib_scenes / "images",
            (calib_scenes,),
            scenes=COUNT,
            held_out=HELD_OUT,
            threads=1,
            **options,
        )

    return made


def given_times(
    products: Collection[Product], forms: Sequence[Template], *_: object
) -> dict[Product, dict[str, float]]:
    """Return times that do not depend on the machine: 8 bits on both sides take half, 4 bits a quarter; small
    matmuls are no faster."""
    shares = {"w8a8": 0.5, "int8": 0.9, "int4": 0.25}
    found = {}
    for one in products:
        floating = one.rows * one.inputs * one.outputs * 1e-9
        found[one] = {FLOAT: floating}
        for form in forms:
            found[one][form.text()] = floating * (shares[form.kind] if one.inputs >= 128 else 1.0)
    return found


def test_a_recipe_stores_what_was_asked_and_names_its_data(
    request_for: Callable[..., Request], calib_bundle: Bundle, tmp_path: Path
) -> None:
    result = calibrate(request_for(tmp_path / "recipe", vision="float", int4="nearest", block=64))
    recipe = read_recipe(tmp_path / "recipe")
    recipe.check_bundle(calib_bundle)
    assert recipe.digest == result.recipe.digest
    assert [path.name for path in tmp_path.iterdir()] == ["recipe"]  # no work is left
    assert list(recipe.stages) == ["llm"]
    texts = {name: form.text() for name, form in recipe.stages["llm"].forms.items()}
    assert texts.pop("lm_head") == "int8/64"
    assert set(texts.values()) == {"int4/64"} and len(texts) == 7 * 4
    assert recipe.budget is None and len(recipe.data["pictures"]) >= 2
    assert recipe.search["asked"]["block"] == 64
    assert recipe.search["score"]["sequences"] == COUNT
    assert recipe.search["score"]["metrics"]["iou"] > 0.8
    assert "prefill" in recipe.search["stages"]
    assert "/" not in json.dumps(recipe.search["asked"])  # no path of this machine
    assert sum(name.startswith("held_out/") for name in recipe.files) >= 2


def test_a_killed_calibration_goes_on_and_writes_the_same(
    request_for: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request_for(tmp_path / "recipe", vision="float", int4="awq")
    whole = calibrate(request_for(tmp_path / "whole", vision="float", int4="awq"))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(verb, "as_asked", killed)
        calibrate(asked)
    assert not asked.output.exists()
    assert work_path(asked.output).is_dir()
    with pytest.raises(LiraError, match="stopped calibration"):
        calibrate(request_for(tmp_path / "recipe", vision="float", int4="awq", block=64))

    first: dict[str, tuple[int, int]] = {}

    @contextmanager
    def bar(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: first.setdefault(title, (done, total)) and None

    again = calibrate(asked, bar)
    assert first["record"] == (COUNT + HELD_OUT, COUNT + HELD_OUT)  # nothing was recorded again
    for name, array in whole.recipe.stages["llm"].tensors.items():
        assert np.array_equal(again.recipe.stages["llm"].tensors[name], array)
    assert again.recipe.stages["llm"].forms == whole.recipe.stages["llm"].forms
    assert not work_path(asked.output).exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `searched` writes."""
    return tmp_path_factory.mktemp("searched")


@pytest.fixture(scope="module")
def searched(
    request_for: Callable[..., Request], folder: Path, quick: pytest.MonkeyPatch
) -> tuple[Result, list[set[str]]]:
    """A recipe by a search, and the sequences that were scored, in the order of the scorers."""
    scored: list[set[str]] = []

    class Watched(verb.Scorer):
        def __init__(self, bundle: Any, sequences: Any, *others: Any) -> None:
            scored.append({one.key for one in sequences})
            super().__init__(bundle, sequences, *others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verb, "Scorer", Watched)
        patched.setattr(costs, "measured_times", given_times)
        chart = folder / "chart.svg"
        request = request_for(
            folder / "recipe", budget="IoU -3%", int4="awq", sensitivity="stages", chart=chart
        )
        return calibrate(request), scored


def test_a_search_keeps_its_budget_and_leaves_the_held_out_scenes_alone(
    searched: tuple[Result, list[set[str]]], folder: Path
) -> None:
    result, scored = searched
    *during, at_the_end = scored
    assert len(at_the_end) == HELD_OUT
    assert all(at_the_end.isdisjoint(keys) for keys in during)
    recipe = read_recipe(folder / "recipe")
    assert recipe.budget is not None and recipe.budget.text == "IoU -3%"
    assert use(recipe.budget, result.score).within
    decision = recipe.search["decision"]
    assert decision["matmul_seconds"]["chosen"] < decision["matmul_seconds"]["float"]
    assert decision["evaluations"] and decision["cost"]["measured"] > 0
    assert "llm" in recipe.stages  # 4 or 8 bits are within three points
    floats = recipe.search["floats"]
    assert "no form is faster than float" in floats.values()
    assert (folder / "chart.svg").is_file() and f"wrote {folder / 'chart.svg'}" in result.told


def test_the_report_says_what_was_decided_and_what_it_cost(
    searched: tuple[Result, list[set[str]]], folder: Path
) -> None:
    result, _ = searched
    console = Console(record=True, width=200, highlight=False)
    print_result(console, result)
    said = console.export_text()
    assert "llm prefill" in said and "IoU -3%" in said
    assert "positions in pixels" in said  # sampling offsets
    assert f"wrote {folder / 'recipe'}" in said
    told = figures(result)
    json.dumps(told, allow_nan=False)
    assert told["digest"] == json.loads((folder / "recipe" / RECIPE_NAME).read_text())["digest"]
    assert told["budget"] == "IoU -3%" and told["cost"]["measured"] > 0


def test_fp8_is_scored_here_and_refused_for_a_cpu(
    request_for: Callable[..., Request], calib_bundle: Bundle, tmp_path: Path
) -> None:
    result = calibrate(request_for(tmp_path / "recipe", vision="fp8", llm="float"))
    forms = [form for part in result.recipe.stages.values() for form in part.forms.values()]
    assert {form.kind for form in forms} == {"fp8"} and "llm" not in result.recipe.stages
    assert 0.9 < result.score.metric("iou") < 1.0 and not result.latencies
    with pytest.raises(LiraError, match=r"target cpu has no fp8 weights, .*; it has int4, int8, w8a8"):
        build(calib_bundle, "cpu", "mixed", recipe=tmp_path / "recipe")
