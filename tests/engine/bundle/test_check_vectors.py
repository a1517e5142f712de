"""Check vectors are read as written, and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.bundle.manifest import StageSpec, TensorSpec
from lira_engine.errors import LiraError

ROW = TensorSpec("float32", (1, "N"))
VALID = TensorSpec("bool", (1, 2))


def spec(**inputs: TensorSpec) -> StageSpec:
    return StageSpec("s.onnx", "checks/s.npz", inputs, {"y": VALID})


def test_loading_returns_what_was_saved(tmp_path: Path) -> None:
    x, y = np.arange(3, dtype=np.float32)[None], np.array([[True, False]])
    margins = np.array([[0.5, 1e-6]], np.float32)
    CheckVectors({"x": x, "in.x": x + 1}, {"y": y}, {"y": 0.25}, {"y": margins}).save(tmp_path / "s.npz")
    found = CheckVectors.load(tmp_path / "s.npz", spec(x=ROW, **{"in.x": ROW}))
    assert found.inputs.keys() == {"x", "in.x"} and found.noise == {"y": 0.25}
    np.testing.assert_array_equal(found.inputs["x"], x)
    np.testing.assert_array_equal(found.outputs["y"], y)
    np.testing.assert_array_equal(found.margins["y"], margins)


@pytest.mark.parametrize(("name", "shape"), [("y", (1, 3)), ("z", (1, 2))])
def test_margins_belong_to_an_output(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    x, y = np.zeros((1, 3), np.float32), np.array([[True, False]])
    CheckVectors({"x": x}, {"y": y}, {}, {name: np.ones(shape)}).save(tmp_path / "s.npz")
    with pytest.raises(LiraError, match=f"margins of {name} do not fit its output; copy the bundle again"):
        CheckVectors.load(tmp_path / "s.npz", spec(x=ROW))


def test_only_an_empty_kv_cache_may_be_missing(tmp_path: Path) -> None:
    stage = spec(position=TensorSpec("int64", (1,)), **{"key_cache.0": ROW})
    for position, says in ((0, None), (4, r"lacks check vectors for key_cache\.0")):
        inputs = {"position": np.array([position])}
        CheckVectors(inputs, {"y": np.array([[True, False]])}).save(tmp_path / "llm.npz")
        if says is None:
            assert CheckVectors.load(tmp_path / "llm.npz", stage).noise == {}
            continue
        with pytest.raises(LiraError, match=says):
            CheckVectors.load(tmp_path / "llm.npz", stage)


LLM = StageSpec(
    "llm.onnx",
    "checks/llm.npz",
    {"inputs_embeds": TensorSpec("float32", (1, "S", 4)), "logit_positions": TensorSpec("int64", ("K",))},
    {"logits": TensorSpec("float32", (1, "K", 7))},
)
FITTING: dict[str, np.ndarray] = {
    "in.inputs_embeds": np.zeros((1, 3, 4), np.float32),
    "in.logit_positions": np.array([0, 2]),
    "out.logits": np.zeros((1, 2, 7), np.float32),
    "noise.logits": np.array(1e-6),
}


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        (
            "in.inputs_embeds",
            np.zeros((1, 3, 5), np.float32),
            r"is float32 \[1, 3, 5\], expected",
        ),
        (
            "in.inputs_embeds",
            np.zeros((1, 0, 4), np.float32),
            r"is float32 \[1, 0, 4\], expected",
        ),
        ("in.inputs_embeds", np.zeros((3, 4), np.float32), "inputs_embeds is float32"),
        ("in.inputs_embeds", np.zeros((1, 3, 4)), "inputs_embeds is float64"),
        ("out.logits", np.zeros((1, 3, 7), np.float32), "logits is float32"),
        ("in.other", np.zeros(1, np.float32), "has check vectors for other, which the stage lacks"),
        ("in.logit_positions", np.array([0, 3]), "asks for rows that it does not have"),
        ("in.logit_positions", np.array([-1, 2]), "asks for rows that it does not have"),
        ("noise.logits", np.zeros(2), "noise of logits is not one number of an output"),
        ("noise.logits", np.array(np.nan), "noise of logits"),
        ("noise.logits", np.array(-1.0), "noise of logits"),
        ("noise.other", np.array(0.1), "noise of other"),
    ],
)
def test_tensors_are_those_of_the_stage(tmp_path: Path, name: str, array: np.ndarray, says: str) -> None:
    file = tmp_path / "llm.npz"
    np.savez(file, **FITTING)  # type: ignore[arg-type]
    assert CheckVectors.load(file, LLM).noise == {"logits": 1e-6}
    np.savez(file, **{**FITTING, name: array})  # type: ignore[arg-type]
    with pytest.raises(LiraError, match=says):
        CheckVectors.load(file, LLM)


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(LiraError, match=r"s\.npz cannot be read \(.*\); copy the bundle again"):
        CheckVectors.load(tmp_path / "s.npz", spec(x=ROW))
