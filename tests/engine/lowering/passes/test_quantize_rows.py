"""8-bit matmuls whose activations have a scale per row."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.accuracy import rms_error
from lira_engine.lowering.passes import quantize_rows
from lira_engine.lowering.passes.quantize_rows import QuantizeRows
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.weights import rounded


def every(name: str) -> bool:
    return True


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("columns", [256, 64, 50])
def test_the_result_is_that_of_the_rounded_operands(
    columns: int, dtype: str, run: Any, counts: Any, case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed here in integers, whatever the number of columns that lie together."""
    monkeypatch.setattr(quantize_rows, "COLUMNS", columns)
    model = WidenWeights()(QuantizeRows(every)(case.model(dtype)).model).model
    x, (weight, scales) = case.x(), rounded(ir.tensor(case.stored(dtype)))
    step = np.abs(x).max(-1, keepdims=True) * np.float32(1 / 127)
    integers = np.rint(x / step)
    assert np.abs(integers).max() == 127
    expected = (integers @ weight.astype(np.float64) * scales * step).astype(np.float32)
    assert rms_error(run(model, {"x": x})[0], expected) < 1e-6
    assert rms_error(expected, x @ case.weight(dtype)) < 0.02
    assert counts(model)["MatMulIntegerToFloat"] == -(-case.outputs // columns)


def test_a_huge_row_costs_the_others_nothing(run: Any, case: Any) -> None:
    model = QuantizeRows(every)(case.model()).model
    x = case.x()
    expected = run(model, {"x": x})[0]
    x[0, 3] *= 1e6
    found = run(model, {"x": x})[0]
    np.testing.assert_array_equal(np.delete(found, 3, 1), np.delete(expected, 3, 1))
    assert rms_error(found[0, 3], x[0, 3] @ case.weight()) < 0.02


def test_rows_of_zeros_stay_zeros(run: Any, case: Any) -> None:
    x = case.x()
    x[0, 2] = 0
    found = run(QuantizeRows(every)(case.model()).model, {"x": x})[0]
    assert (found[0, 2] == 0).all() and np.isfinite(found).all() and found[0, 1].any()


def test_matmuls_of_one_input_round_it_once(new_graph: Any, matrix: Any, counts: Any) -> None:
    g = new_graph([3, 16])
    parts = [g.op("MatMul", g.x, g.weight(n, matrix(16, 8)), shape=[3, 8]) for n in "ab"]
    model = g.finish(g.op("Concat", *parts, shape=[3, 16], axis=-1), opset=21)
    QuantizeRows(every)(model)
    assert counts(model)["QuantizeLinear"] == 1
    assert counts(model)["MatMulIntegerToFloat"] == 2


def test_others_stay(case: Any, assert_unchanged: Any) -> None:
    assert_unchanged(QuantizeRows(lambda name: False), case.model())
    with pytest.raises(Exception, match="the matmul with w was not replaced"):
        QuantizeRows(every).ensures(case.model())
