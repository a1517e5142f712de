"""Check vectors are read as written, and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.bundle.manifest import StageSpec, TensorSpec
from lira_engine.errors import LiraError

ROW = TensorSpec("float32", (1, "N"))


def spec(*inputs: str) -> StageSpec:
    return StageSpec("s.onnx", "checks/s.npz", dict.fromkeys(inputs, ROW), {"y": ROW})


def test_loading_returns_what_was_saved(tmp_path: Path) -> None:
    x, y = np.arange(3, dtype=np.float32)[None], np.array([[True, False]])
    margins = np.array([[0.5, 1e-6]], np.float32)
    CheckVectors({"x": x, "in.x": y}, {"y": y}, {"y": 0.25}, {"y": margins}).save(tmp_path / "s.npz")
    found = CheckVectors.load(tmp_path / "s.npz", spec("x"))
    assert found.inputs.keys() == {"x", "in.x"} and found.noise == {"y": 0.25}
    np.testing.assert_array_equal(found.inputs["x"], x)
    np.testing.assert_array_equal(found.outputs["y"], y)
    np.testing.assert_array_equal(found.margins["y"], margins)


@pytest.mark.parametrize(("name", "shape"), [("y", (1, 3)), ("z", (1, 2))])
def test_margins_belong_to_an_output(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    x, y = np.zeros((1, 3), np.float32), np.array([[True, False]])
    CheckVectors({"x": x}, {"y": y}, {}, {name: np.ones(shape)}).save(tmp_path / "s.npz")
    with pytest.raises(LiraError, match=f"margins of {name} do not fit its output; copy the bundle again"):
        CheckVectors.load(tmp_path / "s.npz", spec("x"))


def test_only_an_empty_kv_cache_may_be_missing(tmp_path: Path) -> None:
    for position, says in ((0, None), (4, r"lacks check vectors for key_cache\.0")):
        inputs = {"position": np.array([position])}
        CheckVectors(inputs, {"y": np.zeros((1, 1))}).save(tmp_path / "llm.npz")
        if says is None:
            assert CheckVectors.load(tmp_path / "llm.npz", spec("position", "key_cache.0")).noise == {}
            continue
        with pytest.raises(LiraError, match=says):
            CheckVectors.load(tmp_path / "llm.npz", spec("position", "key_cache.0"))


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(LiraError, match=r"s\.npz cannot be read \(.*\); copy the bundle again"):
        CheckVectors.load(tmp_path / "s.npz", spec("x"))
