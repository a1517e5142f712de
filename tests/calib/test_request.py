"""Which ways to store weights the options stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lira_calib.request import Request


@dataclass(frozen=True)
class Part:
    stage: str
    name: str
    weights: tuple[str, ...]


LAYER = Part("llm", "layers.0.mlp", ("layers.0.gate",))
HEAD = Part("llm", "lm_head", ("lm_head",))
BLOCK = Part("semantic_encoder", "vit.encoder.layers.0.attn", ("w",))


def request(**options: Any) -> Request:
    return Request(Path("bundle"), Path("recipe"), Path("images"), **options)


@pytest.mark.parametrize(
    ("options", "layer", "head", "block"),
    [
        ({}, "int4/32 gptq", "int8/32", "w8a8 dynamic"),
        ({"int4": "awq", "block": 128}, "int4/128 awq", "int8/128", "w8a8 dynamic"),
        ({"int4": "nearest"}, "int4/32", "int8/32", "w8a8 dynamic"),
        ({"llm": "int8"}, "w8a8 dynamic", "int8/32", "w8a8 dynamic"),
        ({"vision": "fp8"}, "int4/32 gptq", "int8/32", "fp8"),
        ({"llm": "float"}, None, None, "w8a8 dynamic"),
        ({"vision": "float"}, "int4/32 gptq", "int8/32", None),
    ],
)
def test_without_a_budget_each_unit_is_stored_as_asked(
    options: dict[str, Any], layer: str | None, head: str | None, block: str | None
) -> None:
    asked = request(**options)
    found = [asked.asked(unit) for unit in (LAYER, HEAD, BLOCK)]
    assert [None if one is None else one.name for one in found] == [layer, head, block]


def test_a_search_tries_the_small_error_first_and_never_rounds_the_head_by_gptq() -> None:
    asked = request(budget="cIoU -1%")
    names = [[one.name for one in asked.storages_of(unit)] for unit in (LAYER, HEAD, BLOCK)]
    assert names == [
        ["int8/32", "w8a8 dynamic", "int4/32 gptq"],
        ["int8/32", "w8a8 dynamic", "int4/32"],
        ["w8a8 dynamic", "w8a8"],
    ]


def test_gpus_measure_no_ranges_in_a_run() -> None:
    asked = request(budget="cIoU -1%", device="orin-nano-super")
    for unit in (LAYER, HEAD, BLOCK):
        assert not any(one.dynamic for one in asked.storages_of(unit))
