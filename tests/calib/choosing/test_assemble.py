"""Recipes from choices: forms, ranges, scales and codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from lira_calib.choosing.assemble import Assembler, StageMaterial, Storage, unit_key
from lira_engine.engines.recipe import Form, Smoothing, codes_key, scales_key, smoothing_key

W8A8 = Storage("w8a8", smooth="smoothquant")
DYNAMIC = Storage("w8a8", dynamic=True, smooth="smoothquant")
INT4, GPTQ = Storage("int4", 32), Storage("int4", 32, "gptq")
AWQ = Storage("int4", 64, smooth="awq")
NORM = Smoothing("norm", ("norm.weight",), ("q", "k"))
UP = Smoothing("up", ("up",), ("down",))


@dataclass(frozen=True)
class Part:
    stage: str
    name: str
    weights: tuple[str, ...]


UNITS = [
    Part("llm", "layers.0.attention", ("q", "k")),
    Part("llm", "layers.0.mlp", ("up", "down")),
    Part("sefe", "out", ("sefe.out",)),
]


@pytest.fixture
def asked() -> list[tuple[str, float]]:
    """The (weight, sum of its input's scale) for which a range was computed."""
    return []


@pytest.fixture
def spreads() -> dict[str, float]:
    """By weight: how far its input's largest value is above that of a typical row; 1 for others."""
    return {}


@pytest.fixture
def assembler(asked: list[tuple[str, float]], spreads: dict[str, float]) -> Assembler:
    def range_of(weight: str, scale: np.ndarray | None, storage: Storage) -> tuple[float, float]:
        asked.append((weight, 0.0 if scale is None else float(scale.sum())))
        return (-1.0, 2.0 if scale is None else 1.0)

    def spread_of(weight: str, scale: np.ndarray | None) -> float:
        return spreads.get(weight, 1.0) / (1.0 if scale is None else float(scale[0]))

    scales = {
        ("smoothquant", "norm"): np.full(4, 2.0, np.float32),
        ("smoothquant", "up"): np.full(4, 3.0, np.float32),
        ("awq", "norm"): np.full(4, 5.0, np.float32),
    }
    codes = {codes_key("up"): np.zeros((2, 1, 16), np.uint8), scales_key("up"): np.ones((2, 1), np.float16)}
    codes |= {codes_key("down"): codes[codes_key("up")], scales_key("down"): codes[scales_key("up")]}
    materials = {
        "llm": StageMaterial([NORM, UP], scales, range_of, spread_of, codes),
        "sefe": StageMaterial([], {}, range_of, spread_of),
    }
    return Assembler(materials, UNITS, [W8A8, DYNAMIC, INT4, GPTQ, AWQ])


def test_names_say_what_is_stored() -> None:
    names = [one.name for one in (W8A8, INT4, GPTQ, AWQ, Storage("w8a8", dynamic=True))]
    assert names == ["w8a8", "int4/32", "int4/32 gptq", "int4/64 awq", "w8a8 dynamic"]


def test_units_that_stay_floats_leave_no_trace(assembler: Assembler) -> None:
    assert assembler.stages({unit_key(unit): "float" for unit in UNITS}) == {}
    stages = assembler.stages({"llm/layers.0.mlp": "int4/32", "sefe/out": "float"})
    assert list(stages) == ["llm"] and list(stages["llm"].forms) == ["up", "down"]
    assert not stages["llm"].smoothing and not stages["llm"].tensors


def test_w8a8_is_smoothed_and_its_ranges_are_those_of_smoothed_inputs(
    assembler: Assembler, asked: list[tuple[str, float]]
) -> None:
    choice = {"llm/layers.0.attention": "w8a8", "sefe/out": "w8a8"}
    stages = assembler.stages(choice)
    assert stages["llm"].smoothing == (NORM,)
    assert stages["llm"].smoothing_scale(NORM).tolist() == [2.0] * 4
    assert stages["llm"].forms["q"].range == (-1.0, 1.0)
    assert stages["sefe"].forms["sefe.out"].range == (-1.0, 2.0) and not stages["sefe"].smoothing
    assert asked == [("q", 8.0), ("k", 8.0), ("sefe.out", 0.0)]
    assembler.stages(choice)
    assert len(asked) == 3  # a range takes its time: it is computed once


def test_ranges_that_the_cpu_measures_itself_are_left_for_the_end(
    assembler: Assembler, asked: list[tuple[str, float]]
) -> None:
    (recipe,) = assembler.stages({"sefe/out": "w8a8 dynamic"}, final=False).values()
    assert recipe.forms["sefe.out"].dynamic and not asked
    (recipe,) = assembler.stages({"sefe/out": "w8a8 dynamic"}).values()
    assert recipe.forms["sefe.out"].range == (-1.0, 2.0) and len(asked) == 1


def test_awq_has_scales_of_its_own(assembler: Assembler) -> None:
    (recipe,) = assembler.stages({"llm/layers.0.attention": "int4/64 awq"}).values()
    assert recipe.tensors[smoothing_key("norm")].tolist() == [5.0] * 4
    assert recipe.forms["q"].text() == "int4/64" and recipe.forms["q"].range is None


def test_codes_come_along_and_their_weights_are_never_scaled(assembler: Assembler) -> None:
    (recipe,) = assembler.stages({"llm/layers.0.mlp": "int4/32 gptq"}).values()
    packed, scales = recipe.codes("up") or pytest.fail("no codes")
    assert packed.shape == (2, 1, 16) and scales.dtype == np.float32
    assert not recipe.smoothing and smoothing_key("up") not in recipe.tensors
    # A weight that is divided for the next one would no longer be the one that was rounded.
    mixed = Assembler(
        assembler._materials,
        [Part("llm", "up", ("up",)), Part("llm", "down", ("down",))],
        [W8A8, GPTQ],
    )
    (recipe,) = mixed.stages({"llm/up": "int4/32 gptq", "llm/down": "w8a8"}).values()
    assert not recipe.smoothing and recipe.forms["down"].range == (-1.0, 2.0)


def test_an_input_with_a_huge_row_gets_a_scale_in_each_row(
    assembler: Assembler, spreads: dict[str, float]
) -> None:
    spreads |= {"k": 65.0, "q": 63.0, "sefe.out": 33.0}
    stages = assembler.stages({"llm/layers.0.attention": "w8a8", "sefe/out": "w8a8"})
    # The scale of 2 brings the input of q below the limit.
    assert stages["llm"].forms["q"].kind == "w8a8" and stages["llm"].forms["k"] == Form("int8", 32)
    assert not stages["sefe"].forms  # blocks are slower than floats there
    assert assembler.spreads == {"llm/k": 32.5, "sefe/sefe.out": 33.0}
    assert assembler.stages({"llm/layers.0.attention": "int4/32"})["llm"].forms["k"].kind == "int4"
