"""The first tensor that is not finite is named, also deep in a graph, and masks of infinities are none."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from lira_engine.ort import not_finite
from lira_engine.ort.not_finite import first_not_finite

LENGTH = 100


def chain(folder: Path, first: str, weights: dict[str, np.ndarray], external: bool = True) -> Path:
    """x [2] -> `first` node -> a chain of additions -> y."""
    nodes = [onnx.parser.parse_node(first)]
    names = ["v0", *(f"v{n}" for n in range(1, LENGTH)), "y"]
    nodes += [helper.make_node("Add", [a, "one"], [b]) for a, b in pairwise(names)]
    tensors = {"one": np.ones(2, np.float32), **weights}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(
        model, folder / "g.onnx", save_as_external_data=external, location="g.onnx.data", size_threshold=0
    )
    return folder / "g.onnx"


def test_the_first_one_is_named_with_its_operator(tmp_path: Path) -> None:
    graph = chain(tmp_path, "v0 = Div(x, zero)", {"zero": np.array([0, 1], np.float32)})
    feeds = {"x": np.ones(2, np.float32)}
    assert first_not_finite(graph, feeds) == "v0 (Div)"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.onnx", "g.onnx.data"]
    assert first_not_finite(chain(tmp_path, "v0 = Mul(x, one)", {}), feeds) is None


def test_one_behind_the_first_group_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums overflow step by step: only what is not finite itself counts."""
    monkeypatch.setattr(not_finite, "_AT_ONCE", 7)
    step = np.float32(4e36)
    graph = chain(tmp_path, "v0 = Mul(x, one)", {})
    model = onnx.load(graph)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([step, 0], np.float32), "one"))
    onnx.save(model, graph)
    feeds = {"x": np.array([1, 1], np.float32)}
    total, count = np.float32(step), 0
    with np.errstate(over="ignore"):
        while np.isfinite(total):
            total, count = np.float32(total + step), count + 1
    assert 7 < count < LENGTH
    assert first_not_finite(graph, feeds) == f"v{count} (Add)"


def test_masks_of_negative_infinity_do_not_count(tmp_path: Path) -> None:
    low = np.array([-np.inf, 0], np.float32)
    graph = chain(tmp_path, "v0 = Add(x, mask)", {"mask": low})
    assert first_not_finite(graph, {"x": np.ones(2, np.float32)}) is None
    assert first_not_finite(graph, {"x": np.array([np.inf, 1], np.float32)}) == "v0 (Add)"


def test_a_graph_that_does_not_run_names_nothing(tmp_path: Path) -> None:
    graph = chain(tmp_path, "v0 = Div(x, zero)", {"zero": np.zeros(2, np.float32)})
    assert first_not_finite(graph, {"x": np.ones(3, np.float32)}) is None
