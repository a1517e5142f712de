"""Feed-forward layers on a few rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes import multiply_in_chunks
from lira_engine.lowering.passes.fold_bias import FoldBias
from lira_engine.lowering.passes.multiply_in_chunks import MultiplyInChunks
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import UseDynamicQuantizeMatMul
from lira_engine.lowering.passes.use_matmul_integer_to_float import UseMatMulIntegerToFloat
from lira_engine.lowering.pipeline import Pass, apply

K, HIDDEN, SIDE = 16, 32, 24
SHAPE = [1, SIDE, SIDE, K]
STATIC = UseMatMulIntegerToFloat(lambda name: (-4.0, 4.0))
DYNAMIC = UseDynamicQuantizeMatMul(lambda matmul: True)


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiply_in_chunks, "_CACHED", 4 * HIDDEN * 100)


def layer(
    new_graph: Any, matrix: Any, shape: list[int | str] = SHAPE, act: str = "Gelu", reads: int = 1
) -> ir.Model:
    """x [..,16] -> [..,16] by way of 32; `reads`: how many nodes read the activation."""
    g, inner = new_graph(shape), [*shape[:-1], HIDDEN]
    first = g.op("MatMul", g.x, g.weight("fc1", matrix(K, HIDDEN)), shape=inner)
    biased = g.op("Add", first, g.weight("bias", np.linspace(-1, 1, HIDDEN).astype(np.float32)), shape=inner)
    hidden = g.op(act, biased, shape=inner)
    y = g.op("MatMul", hidden, g.weight("fc2", matrix(HIDDEN, K)), shape=shape)
    if reads > 1:
        y = g.op("Add", y, g.op("ReduceMax", hidden, shape=[1]), shape=shape)
    return g.finish(y, opset=21)


@pytest.mark.parametrize("act", ["Gelu", "Relu"])
@pytest.mark.parametrize("form", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_results_stay(form: Pass, act: str, new_graph: Any, matrix: Any, run: Any, counts: Any) -> None:
    """Static ranges are those of before: bit for bit. Chunks have ranges of their own, none wider."""
    x = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32).clip(-3, 3)
    passes = [form, FoldBias()]
    before = apply(layer(new_graph, matrix, act=act), passes)
    expected = run(before, {"x": x})[0]
    with pytest.raises(ir.passes.PostconditionError, match="is still over all rows"):
        MultiplyInChunks().ensures(before)
    model = apply(layer(new_graph, matrix, act=act), [*passes, MultiplyInChunks()])
    assert counts(model)["Scan"] == 1
    assert not {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", act} & set(counts(model))
    (scan,) = [node for node in model.graph if node.op_type == "Scan"]
    assert list(scan.inputs[0].shape or ())[1:] == [96, K]  # the largest divisor of 576 up to 100
    found = run(model, {"x": x})[0]
    if form is STATIC:
        np.testing.assert_array_equal(found, expected)
    else:
        assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 0.02


@pytest.mark.parametrize("rows, chunk", [(128, 64), (126, None), (100, None), (200, 100)])
def test_a_chunk_has_at_least_64_rows_and_at_most_those_that_fit(
    rows: int, chunk: int | None, new_graph: Any, matrix: Any
) -> None:
    """100 fit here; of 126 rows, the largest divisor up to that is 63."""
    model = apply(layer(new_graph, matrix, [1, rows, K]), [STATIC, FoldBias(), MultiplyInChunks()])
    scans = [node for node in model.graph if node.op_type == "Scan"]
    assert [list(scan.inputs[0].shape or ())[1:] for scan in scans] == ([[chunk, K]] if chunk else [])


@pytest.mark.parametrize(
    "why, given",
    [
        ("few rows", {"shape": [1, 4, 24, K]}),
        ("an unknown number of rows", {"shape": ["B", SIDE, SIDE, K]}),
        ("a prime number of rows", {"shape": [1, 577, K]}),
        ("an activation that others read", {"reads": 2}),
        ("another activation", {"act": "Sigmoid"}),
    ],
)
def test_others_stay(
    why: str, given: dict[str, Any], new_graph: Any, matrix: Any, assert_unchanged: Any
) -> None:
    assert_unchanged(MultiplyInChunks(), apply(layer(new_graph, matrix, **given), [DYNAMIC, FoldBias()]))
