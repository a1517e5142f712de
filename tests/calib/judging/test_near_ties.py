"""What is asked about flips of near ties (what becomes of the answer: tests/engine/test_near_ties.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lira_calib.judging import gate, near_ties
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.judgement import Candidate
from lira_engine.engines.near_ties import Flip
from lira_engine.errors import LiraError
from lira_runtime import Scene


def candidate(bundle: Bundle, *queries: int) -> Candidate:
    valid = bundle.check_vectors("pixel_encoder").outputs["query_valid"][0]
    flips = tuple(Flip("query_valid", query, not valid[query], 1e-6, 2e-4) for query in queries)
    folder = bundle.engine_folder("cpu", "fp32")
    return Candidate(bundle, None, None, "cpu", {}, folder, threads=1, precision="fp32", flips=flips)


def test_without_flips_nothing_is_lost(calib_bundle: Bundle) -> None:
    """The two answers differ in the flips alone."""
    said: list[str] = []
    found = gate.judge(Candidate(**{**vars(candidate(calib_bundle)), "progress": said.append}))
    assert found.metrics["tokens"] == found.metrics["iou"] == 1.0 and not found.refused
    assert (found.ran, found.pictures, found.questions) == ("engines", 1, 2) and len(said) == 2
    assert gate.judge(candidate(calib_bundle, 3)).refused


def test_engines_are_opened_with_the_candidates_driver(calib_bundle: Bundle) -> None:
    with pytest.raises(LiraError, match="target cpu takes no driver"):
        gate.judge(replace(candidate(calib_bundle, 3), driver="pycuda"))


def test_the_picture_is_that_of_the_check_vectors(calib_bundle: Bundle) -> None:
    pixels, spec = (
        calib_bundle.check_vectors("pixel_encoder").inputs["pixel_values"],
        calib_bundle.manifest.preprocessing.pixel,
    )
    picture = near_ties.shown_picture(pixels, spec)
    assert picture.shape == (spec.size, spec.size, 3) and picture.dtype == np.uint8 and picture.std() > 20
    again = (picture.transpose(2, 0, 1) / 255 - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(
        spec.std, (3, 1, 1)
    )
    assert np.abs(again - pixels[0]).max() < 0.51 / 255 / min(spec.std)


def test_a_mask_is_compared_where_the_model_makes_none(
    calib_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [calib_bundle.manifest.tokens.eos[0]]

    def silent(scene: Scene, task: str, text: str | None) -> dict[str, Any]:
        return {"text": None if task == "gcg" else "the object", "tokens": tokens, "masks": []}

    monkeypatch.setattr(near_ties, "own_answer", silent)
    found = gate.judge(candidate(calib_bundle, 3))
    assert found.questions == 3 and found.metrics["iou"] < 1


def test_a_context_too_short_for_a_question_is_told(
    calib_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fits(self: Scene, prompt: Any) -> bool:
        return False

    monkeypatch.setattr(Scene, "fits", fits)
    assert "context is too short" in gate.judge(candidate(calib_bundle, 3)).not_judged
