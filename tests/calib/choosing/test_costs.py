"""How often matmuls run in an average answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_calib.choosing import costs
from lira_calib.choosing.costs import head_runs, llm_runs, stage_runs, unit_seconds
from lira_calib.choosing.timing import FLOAT
from lira_calib.methods.rules import units
from lira_calib.request import Request
from lira_engine.bundle.bundle import Bundle


@dataclass
class Answered:
    token_rows: np.ndarray


def test_an_answer_is_a_prefill_decode_steps_and_regions() -> None:
    plain = Answered(np.array([99, 100, 101]))  # 100 rows, then two steps
    grounded = Answered(np.array([109, 110, 128, 129]))  # 110 rows, a step, a region of 18, a step
    assert llm_runs([plain, grounded]) == {1: 2.0, 18: 0.5, 105: 1.0}
    assert head_runs([plain, grounded]) == {1: 3.5}


def test_an_answer_of_one_token_has_no_decode_step() -> None:
    assert llm_runs([Answered(np.array([7]))]) == {8: 1.0}


def test_other_stages_run_as_often_as_they_were_fed() -> None:
    assert stage_runs(rows=12 * 1025, runs=12, sequences=4) == {1025: 3.0}
    assert stage_runs(rows=0, runs=0, sequences=4) == {}


def test_a_named_device_is_predicted_and_nothing_is_measured(
    nano_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the layers a prefill and two steps count, of the LM head the rows that are asked for."""
    monkeypatch.setattr(costs, "measured_times", lambda *_: pytest.fail("measured"))
    bundle = Bundle.open(nano_bundle)
    found = units(ir.load(bundle.stage_file("llm")), "llm")
    request = Request(
        nano_bundle, Path("recipe"), Path("images"), budget="cIoU -1%", device="orin-nano-super", block=128
    )
    answer = Answered(np.array([99, 100, 101]))
    seconds = unit_seconds(bundle, found, request, {}, [answer])  # type: ignore[list-item]
    assert list(seconds) == [f"llm/{unit.name}" for unit in found]
    of_layer = seconds["llm/layers.0.mlp"]
    assert list(of_layer) == [FLOAT, "int8/128", "w8a8", "int4/128 gptq"]
    assert list(seconds["llm/lm_head"]) == [FLOAT, "int8/128", "w8a8", "int4/128"]
    twice = unit_seconds(bundle, found, request, {}, [answer, answer])  # type: ignore[list-item]
    assert twice["llm/layers.0.mlp"] == pytest.approx(of_layer)  # of an average answer
    longer = Answered(np.arange(99, 200))
    assert unit_seconds(bundle, found, request, {}, [longer])["llm/lm_head"][FLOAT] > (  # type: ignore[list-item]
        30 * seconds["llm/lm_head"][FLOAT]
    )
