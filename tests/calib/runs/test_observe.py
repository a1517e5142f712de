"""What the matmuls of a graph read is handed out, however the tensors are grouped."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_calib.runs import observe as module
from lira_calib.runs.observe import observe
from lira_engine.errors import LiraError
from lira_engine.lowering.weights import constant_matmuls

Rows = dict[str, list[np.ndarray]]


def graph() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """x [1,S,4] @ a -> relu -> @ b and, in 16 bits, @ c -> product [1,S,6]; the names are lira's."""
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((4, 5)), "b": rng.standard_normal((5, 6))}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays["c"] = rng.standard_normal((5, 6)).astype(np.float16)
    tape = ir.tape.Tape()
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["1", "S", 4])
    weights = {name: tape.initializer(ir.tensor(array, name=name)) for name, array in arrays.items()}
    wide = tape.op("Cast", [weights["c"]], {"to": ir.DataType.FLOAT})

    def named(name: str, width: int) -> ir.Value:
        return ir.val(name, dtype=ir.DataType.FLOAT, shape=["1", "S", width])

    first = tape.op("MatMul", [x, weights["a"]], output=named("first", 5))
    relu = tape.op("Relu", [first], output=named("relu", 5))
    both = [
        tape.op("MatMul", [relu, weight], output=named(f"by_{name}", 6))
        for name, weight in (("b", weights["b"]), ("c", wide))
    ]
    out = tape.op("Mul", both, output=named("out", 6))
    made = ir.Graph(
        [x], [out], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 21}, name="sefe"
    )
    return ir.Model(made, ir_version=10), arrays


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The tensors that each run watches."""
    found: list[list[str]] = []
    original = module.watching

    def counted(model: ir.Model, names: list[str], alone: bool = False) -> ir.Model:
        found.append(list(names))
        return original(model, names, alone)

    monkeypatch.setattr(module, "watching", counted)
    return found


def observed(model: ir.Model, feeds: list[dict[str, np.ndarray]], folder: Path, limit: int) -> Rows:
    found: Rows = {}
    observe(model, feeds, lambda name, rows: found.setdefault(name, []).append(rows.copy()), folder, 1, limit)
    return found


FEEDS = [{"x": np.random.default_rng(i).standard_normal((1, 3 + i, 4), np.float32)} for i in range(3)]


@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_rows_are_what_the_matmuls_read(limit: int, tmp_path: Path) -> None:
    model, arrays = graph()
    before = ir.serde.serialize_model(model).SerializeToString()
    found = observed(model, FEEDS, tmp_path, limit)
    assert sorted(found) == ["a", "b", "c"]
    for i, feeds in enumerate(FEEDS):
        x = feeds["x"][0]
        np.testing.assert_array_equal(found["a"][i], x)
        for name in "bc":
            assert found[name][i].dtype == np.float32
            np.testing.assert_allclose(found[name][i], np.maximum(x @ arrays["a"], 0), rtol=1e-5, atol=1e-6)
    assert ir.serde.serialize_model(model).SerializeToString() == before
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_two_matmuls_read_is_watched_once(groups: list[list[str]], tmp_path: Path) -> None:
    observed(graph()[0], FEEDS, tmp_path, 1)
    assert groups == [["relu"]]  # x is an input: no run has to make it


@pytest.mark.portable
def test_the_pixel_encoder_s_groups_give_the_same_rows(
    nano_bundle: Path, groups: list[list[str]], tmp_path: Path
) -> None:
    """Its graph has functions, masks that are outputs, and constants that two matmuls share."""
    model = ir.load(nano_bundle / "pixel_encoder.onnx")
    with np.load(nano_bundle / "checks" / "pixel_encoder.npz") as checks:
        feeds = [{"pixel_values": checks["in.pixel_values"]}]
    whole = observed(model, feeds, tmp_path, 1 << 30)
    (together,) = groups
    groups.clear()
    parts = observed(model, feeds, tmp_path, 1 << 21)
    values = ir.convenience.create_value_mapping(model.graph)
    sizes = [sum(4 * math.prod(values[name].shape.numpy()) for name in names) for names in groups]  # type: ignore[union-attr]
    assert len(groups) > 2 and max(sizes) <= 1 << 21
    assert [name for names in groups for name in names] == together
    assert len(whole) > 50 and whole.keys() == parts.keys()
    uses = Counter(matmul.name for matmul in constant_matmuls(model.graph))
    assert max(uses.values()) == 3  # a head after each decoder layer
    assert uses == {name: len(rows) for name, rows in whole.items()}
    for name, rows in whole.items():
        for one, other in zip(rows, parts[name], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(np.abs(one).max()))


def test_feeds_that_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="begins anew"):
        observe(graph()[0], iter(FEEDS), lambda name, rows: None, tmp_path)


def test_no_feeds_are_no_runs(tmp_path: Path) -> None:
    assert observed(graph()[0], [], tmp_path, 1) == {}


def test_a_graph_of_no_stage_is_refused(tmp_path: Path) -> None:
    model, _ = graph()
    model.graph.name = "other"
    with pytest.raises(LiraError, match="nothing lowers other"):
        observed(model, FEEDS, tmp_path, 1)
