"""How far the logits of verify's answer may be from those that they are compared with."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lira_engine.open
from lira_engine import LiraError
from lira_engine.engines.llm_tensors import prefill_file
from lira_engine.engines.runner import LlmOutput
from lira_runtime import verify_answer
from lira_runtime.verify_answer import RecordedRun, RecordingLlm, RecordingStage, _agreeing


def test_cutting_is_exact_in_fp32_alone() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 50)).astype(np.float32)
    assert verify_answer._check_cutting(logits * np.float32(1.001), logits, 0.02) == pytest.approx(
        1e-3, rel=0.01
    )
    with pytest.raises(LiraError, match="token by token they differ by"):
        verify_answer._check_cutting(logits * np.float32(1.001), logits, 1e-4)


def test_near_ties_may_swap() -> None:
    expected = np.array([[9.0, 10.0, -5.0], [1.0, 2.0, 3.0]], np.float32)
    assert _agreeing(expected, expected, "fp32") == 2
    turned = expected[:, [1, 0, 2]]  # the first argmax is another token, 1.0 below 10
    with pytest.raises(
        LiraError,
        match=r"token 1 of the answer is wrong: the engine's argmax is 0, .* is 1 and ahead of it by 1",
    ):
        _agreeing(turned, expected, "fp16")
    assert _agreeing(turned, expected, "int8") == 1


def test_int4_logits_unrelated_to_the_portable_ones_are_wrong() -> None:
    """With four bits any argmax may be a tie: the error of all logits decides."""
    expected = np.random.default_rng(0).standard_normal((5, 50)).astype(np.float32)
    with pytest.raises(LiraError, match=r"logits of the answer are wrong: .* at most 6e-01 is accepted"):
        _agreeing(expected[:, ::-1], expected, "int4")
    assert _agreeing(expected * np.float32(1.3), expected, "int4") == 5


@pytest.mark.parametrize("precision, tolerance", [("fp16", 0.02), ("int8", 0.15)])
def test_a_tie_is_a_gap_of_four_tolerances_at_most(precision: str, tolerance: float) -> None:
    expected = np.resize(np.array([0.3, -0.3], np.float32), (1, 4000))  # so that one of them is little
    expected[0, 0] = 1
    for gap, tie in ((3.9, True), (4.1, False)):
        expected[0, 2] = 1 - gap * tolerance
        found = expected.copy()
        found[0, 2] = 1.001
        with nullcontext() if tie else pytest.raises(LiraError, match="engine's argmax is 2"):
            assert _agreeing(found, expected, precision) == 0


def test_passes_are_kept_as_they_were() -> None:
    """Engines may write the next pass where the last one was."""

    class Llm:
        logits = np.zeros((1, 3), np.float32)

        def forward(self, embeds: np.ndarray, cache: Any, logit_positions: Any) -> LlmOutput:
            self.logits[:] = embeds.sum()
            return LlmOutput(self.logits, self.logits)

    llm = RecordingLlm(Llm())  # type: ignore[arg-type]
    embeds = np.ones((2, 4), np.float32)
    for number in (1, 2):
        embeds[:] = number
        llm.forward(embeds, None)  # type: ignore[arg-type]
    assert [chunk[0, 0] for chunk in llm.chunks] == [1, 2]
    assert [row[0] for row in llm.logits] == [8, 16]
    embeds[0, 0] = np.nan
    with pytest.raises(LiraError, match="logits of the answer are not finite"):
        llm.forward(embeds, None)  # type: ignore[arg-type]


def test_one_go_asks_after_every_pass_but_the_first() -> None:
    def forward(embeds: np.ndarray, cache: Any, positions: Any) -> LlmOutput:
        return LlmOutput(embeds[positions], embeds)

    chunks = [np.full((rows, 1), number, np.float32) for number, rows in enumerate((3, 1, 4, 1))]
    chunks[2][-1] = 9
    found = verify_answer._in_one_go(SimpleNamespace(forward=forward), None, chunks)  # type: ignore[arg-type]
    assert found[:, 0].tolist() == [1, 9, 3]


@pytest.mark.parametrize("off, wrong", [(5e-4, False), (2e-3, True)])
def test_a_stage_must_read_on_the_device_what_it_was_given(off: float, wrong: bool) -> None:
    given = np.linspace(1, 2, 8, dtype=np.float32)

    def run(feeds: Any) -> dict[str, np.ndarray]:
        return {"y": np.asarray(feeds["x"]) * 2}

    runner = SimpleNamespace(
        name="sefe", input_specs={}, output_specs={}, run=run, close=lambda: None, start=None
    )
    stage = RecordingStage(runner)  # type: ignore[arg-type]
    started: Any = SimpleNamespace(numpy=lambda name: given * np.float32(2 * (1 + off)), outputs={})
    stage.passes.append(RecordedRun({"x": np.zeros(8, np.float32)}, started))
    with pytest.raises(LiraError, match="sefe reads something else") if wrong else nullcontext():
        verify_answer._check_handed_over(stage, {"x": given})


@pytest.mark.parametrize(
    "forms, files, error, tolerance",
    [
        ({}, (), 0.1, 0.02),
        ({"w8a8": 3}, (), 0.1, 0.02),
        ({"w8a8 dynamic": 3}, (), 0.1, 0.15),
        ({}, (prefill_file(0),), 0.1, 0.1),
        ({}, (prefill_file(0),), 0.001, 0.02),
        ({}, (prefill_file(0),), 0.4, 0.15),
    ],
)
def test_how_rows_may_differ_in_other_passes_depends_on_the_build(
    forms: dict[str, int],
    files: tuple[str, ...],
    error: float,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = SimpleNamespace(forms={"llm": forms}, files=files, errors={"llm": {"logits": error}})
    monkeypatch.setattr(verify_answer, "read_build", lambda folder, mend: build)
    bundle: Any = SimpleNamespace(engine_folder=lambda target, precision: Path())
    engines: Any = SimpleNamespace(target="cpu", precision="int4")
    assert verify_answer._cutting_tolerance(bundle, engines, "int4") == tolerance
    assert verify_answer._cutting_tolerance(bundle, engines, "fp32") == 1e-4


@pytest.mark.parametrize("free, asked", [(None, True), (10, True), (9, False)])
def test_the_reference_needs_two_and_a_half_times_its_weights(
    free: int | None, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llm.onnx").write_bytes(bytes(4 << 20))
    bundle: Any = SimpleNamespace(path=tmp_path, stage_sources=lambda stage: ["llm.onnx"])
    opened: list[int] = []
    monkeypatch.setattr(verify_answer, "available_mib", lambda: free)
    monkeypatch.setattr(verify_answer, "_reference", lambda *_: opened.append(1))
    assert verify_answer._reference_logits(bundle, None, [], 1) is None  # type: ignore[arg-type]
    assert bool(opened) is asked


@pytest.mark.parametrize(
    "checked, tried",
    [("cpu-fp32", ["portable"]), ("cpu-int4", ["portable", "cpu"]), ("cuda-fp32", ["portable", "cpu"])],
)
def test_engines_are_not_their_own_reference(
    checked: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def open_llm(bundle: Any, target: str, precision: str, threads: int | None) -> None:
        asked.append(target)
        raise LiraError("too old")

    monkeypatch.setattr(lira_engine.open, "open_llm", open_llm)
    target, _, precision = checked.partition("-")
    engines: Any = SimpleNamespace(target=target, precision=precision)
    assert verify_answer._reference(None, engines, 1) is None  # type: ignore[arg-type]
    assert asked == tried
