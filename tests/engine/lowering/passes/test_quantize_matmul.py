"""MatMulNBits against the same graph with the weights that the integers represent."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.accuracy import rms_error
from lira_engine.engines.precision import PRECISIONS
from lira_engine.lowering.int4_blocks import WeightBits, dequantize, quantize, residual
from lira_engine.lowering.passes.quantize_matmul import QuantizeMatMul
from lira_engine.lowering.passes.widen_weights import WidenWeights

ACTIVATION_ERROR = 0.01
"""Of activations rounded to 8 bits per block, as a share of the output's root mean square."""


def rms(error: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt((error**2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_four_and_eight_bits_compute_with_the_rounded_weights(
    bits: int, block: int, dtype: str, run: Any, counts: Any, values: Any, case: Any
) -> None:
    model = QuantizeMatMul(lambda name: WeightBits(bits, block))(case.model(dtype)).model
    model = WidenWeights()(model).model
    w, x = case.weight(dtype), case.x()
    first = quantize(w, block)
    rounded = dequantize(first, case.inputs)
    if bits == 8:
        rounded = rounded + dequantize(quantize(residual(w, first), block), case.inputs)
    found = run(model, {"x": x})[0]
    # Rounded activations are the only other difference.
    assert rms(found - x @ rounded, x @ rounded) < ACTIVATION_ERROR
    assert rms(x @ rounded - x @ w, x @ w) > (0.05 if bits == 4 else 0.0005)
    dtypes = {value.dtype for value in model.graph.initializers.values()}
    assert dtypes <= {ir.DataType.UINT8, ir.DataType.FLOAT}
    assert counts(model)["MatMulNBits"] == bits // 4
    matmuls = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert {node.attributes["accuracy_level"].as_int() for node in matmuls} == {4}  # 8-bit activations


def test_weights_that_are_not_chosen_stay(run: Any, counts: Any, assert_unchanged: Any, case: Any) -> None:
    model, x = case.model(), case.x()
    assert_unchanged(QuantizeMatMul(lambda name: None), model)
    assert counts(model) == {"MatMul": 1}
    np.testing.assert_allclose(run(model, {"x": x})[0], x @ case.weight(), atol=1e-5)


@pytest.mark.parametrize("fault", ["order", "scales", "nibbles"])
def test_a_wrong_packing_is_beyond_the_tolerance(fault: str, run: Any, case: Any) -> None:
    model, x = QuantizeMatMul(lambda name: WeightBits(4))(case.model()).model, case.x()
    right = run(model, {"x": x})[0]
    packed, scales = (model.graph.initializers[f"w.q4.{part}"] for part in ("packed", "scales"))
    assert packed.const_value is not None and scales.const_value is not None
    p, s = packed.const_value.numpy(), scales.const_value.numpy()
    if fault == "order":
        packed.const_value = ir.tensor(np.ascontiguousarray(p[:, ::-1]), name=packed.name)
    elif fault == "scales":
        scales.const_value = ir.tensor(np.roll(s, 1) * 2, name=scales.name)
    else:
        packed.const_value = ir.tensor(p << 4 | p >> 4, name=packed.name)
    expected = x @ case.weight()
    assert rms_error(right, expected) < PRECISIONS["int4"].tolerance / 4
    assert rms_error(run(model, {"x": x})[0], expected) > PRECISIONS["int4"].tolerance


def test_a_weight_of_two_matmuls_is_quantized_once(
    new_graph: Any, matrix: Any, counts: Any, run: Any
) -> None:
    w, x = matrix(32, 32), np.ones((1, 32), np.float32)
    rounded = dequantize(quantize(w, 32), 32)
    g = new_graph([1, 32])
    right = g.weight("w", w)
    model = g.finish(g.op("MatMul", g.op("MatMul", g.x, right, shape=[1, 32]), right, shape=[1, 32]))
    QuantizeMatMul(lambda name: WeightBits(4))(model)
    assert counts(model) == {"MatMulNBits": 2}
    assert set(model.graph.initializers) == {"w", "w.q4.packed", "w.q4.scales"}
    expected = x @ rounded @ rounded
    assert rms(run(model, {"x": x})[0] - expected, expected) < 2 * ACTIVATION_ERROR


def test_a_chosen_weight_that_is_left_is_noticed(case: Any) -> None:
    with pytest.raises(ir.passes.PostconditionError, match="the matmul with w was not replaced"):
        QuantizeMatMul(lambda name: WeightBits(4)).ensures(case.model())
