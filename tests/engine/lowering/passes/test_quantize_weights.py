"""INT4 weights behind DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine.engines.accuracy import relative_error
from lira_engine.lowering.int4_blocks import (
    Blocks,
    WeightBits,
    dequantize,
    quantize_positive,
    quantize_symmetric,
    residual,
    rounded_by,
)
from lira_engine.lowering.passes.quantize_weights import QuantizeWeights
from lira_engine.lowering.pipeline import apply

pytestmark = pytest.mark.portable
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_int4_weights_are_what_their_integers_and_scales_say(
    dtype: str, new_graph: Any, run: Any, matrix: Any, values: Any
) -> None:
    w = matrix(256, 24).astype(dtype)
    g = new_graph([3, 256])
    right = g.weight("w", w)
    if dtype == "float16":
        right = g.op("Cast", right, to=FLOAT)
    passes = [QuantizeWeights(lambda name, inputs: WeightBits(4, 64)), common.RemoveUnusedNodesPass()]
    model = apply(g.finish(g.op("MatMul", g.x, right, shape=[3, 24])), passes)
    x = RANDOM.normal(size=(3, 256)).astype(np.float32)
    single = w.astype(np.float32)
    scales = quantize_symmetric(single, 64).scales.T.repeat(64, axis=0)
    integers = np.rint(single / scales)
    assert np.abs(integers).max() == 7
    rounded = (integers * scales).astype(np.float16).astype(np.float32)
    assert relative_error(run(model, {"x": x})[0], x @ rounded) < 1e-6
    kinds = {value.name: value.dtype for value in model.graph.initializers.values() if value.uses()}
    assert kinds == {"w.int4": ir.DataType.INT4, "w.scales": HALF}


@pytest.mark.parametrize("is_output", [True, False])
def test_an_odd_number_of_columns_is_padded(
    is_output: bool, new_graph: Any, run: Any, counts: Any, matrix: Any, values: Any
) -> None:
    """Two of them share a byte."""

    def build(columns: int) -> ir.Model:
        g = new_graph([3, 64])
        out = g.op("MatMul", g.x, g.weight("w", w[:, :columns]), shape=[3, columns])
        return g.finish(out if is_output else g.op("Neg", out, shape=[3, columns]))

    w, x = matrix(64, 8), RANDOM.normal(size=(3, 64)).astype(np.float32)
    even, odd = (apply(build(n), [QuantizeWeights(lambda name, inputs: WeightBits(4, 32))]) for n in (8, 7))
    packed = odd.graph.initializers["w.int4"]
    assert list(packed.shape or ()) == [64, 8] and counts(odd)["Slice"] == 1 and not counts(even)["Slice"]
    assert (values(odd, "w.scales") > 0).all()  # of the column that was added, too: TensorRT wants it
    onnx.checker.check_model(ir.to_proto(odd), full_check=True)
    found = run(odd, {"x": x})[0]
    assert found.shape == (3, 7)
    np.testing.assert_allclose(found, run(even, {"x": x})[0][:, :7], rtol=1e-6)


def test_a_block_of_zeros_has_a_positive_scale(new_graph: Any, matrix: Any, values: Any) -> None:
    g = new_graph([1, 64])
    w = matrix(64, 2)
    w[32:] = 0
    passes = [QuantizeWeights(lambda name, inputs: WeightBits(4, 32))]
    model = apply(g.finish(g.op("MatMul", g.x, g.weight("w", w), shape=[1, 2])), passes)
    assert (values(model, "w.scales") > 0).all() and not values(model, "w.int4")[32:].any()


def test_a_recipes_own_codes_are_used(new_graph: Any, run: Any, matrix: Any) -> None:
    """Also -8; in the order of inputs and outputs."""
    codes = RANDOM.integers(-8, 8, (64, 7))
    scales = RANDOM.uniform(0.5, 1, (7, 2)).astype(np.float16).astype(np.float32)
    unsigned = (codes.T.reshape(7, 2, 32) + 8).astype(np.uint8)
    blocks = Blocks(unsigned[..., 0::2] | unsigned[..., 1::2] << 4, scales)
    g = new_graph([3, 64])
    passes = [
        QuantizeWeights(lambda name, inputs: WeightBits(4, 32), lambda name, stored, block, digit: blocks)
    ]
    model = apply(g.finish(g.op("MatMul", g.x, g.weight("w", matrix(64, 7)), shape=[3, 7])), passes)
    x = RANDOM.normal(size=(3, 64)).astype(np.float32)
    expected = x @ (codes * scales.T.repeat(32, axis=0)).astype(np.float16).astype(np.float32)
    assert relative_error(run(model, {"x": x})[0], expected) < 1e-6


@pytest.mark.parametrize("columns", [8, 7])
def test_eight_bits_are_two_digits(columns: int, new_graph: Any, run: Any, matrix: Any, counts: Any) -> None:
    w, x = matrix(64, 8)[:, :columns], RANDOM.normal(size=(3, 64)).astype(np.float32)
    g = new_graph([3, 64])
    passes = [QuantizeWeights(lambda name, inputs: WeightBits(8, 32), rounded_by(quantize_positive))]
    model = apply(g.finish(g.op("MatMul", g.x, g.weight("w", w), shape=[3, columns])), passes)
    high = quantize_positive(w, 32)
    low = dequantize(quantize_positive(residual(w, high), 32), 64)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert counts(model)["MatMul"] == 2 and counts(model)["Slice"] == columns % 2
    found = run(model, {"x": x})[0]
    # DequantizeLinear rounds its product to fp16.
    assert relative_error(found, x @ (dequantize(high, 64) + low)) < 1e-3
    assert relative_error(found, x @ w) < 0.02 < relative_error(x @ dequantize(high, 64), x @ w)


def test_a_block_that_does_not_divide_a_weight_is_refused(new_graph: Any, matrix: Any) -> None:
    g = new_graph([1, 48])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(48, 2)), shape=[1, 2]))
    with pytest.raises(ir.passes.PreconditionError, match="multiple of the block 32"):
        QuantizeWeights(lambda name, inputs: WeightBits(4, 32))(model)


@pytest.mark.parametrize("columns", [64, 63])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_of_two_matmuls_is_quantized_once(
    bits: int, columns: int, new_graph: Any, matrix: Any, run: Any, counts: Any
) -> None:
    g = new_graph([2, 64])
    w, x = matrix(64, 64)[:, :columns], RANDOM.normal(size=(2, 64)).astype(np.float32)
    right = g.weight("w", w)
    results = [
        g.op("MatMul", left, right, shape=[2, columns]) for left in (g.x, g.op("Neg", g.x, shape=[2, 64]))
    ]
    model = g.finish(g.op("Concat", *results, shape=[2, 2 * columns], axis=-1))
    model = apply(model, [QuantizeWeights(lambda name, inputs: WeightBits(bits, 32))])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    stored = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT4]
    assert len(stored) == bits // 4 and counts(model)["DequantizeLinear"] == bits // 2
    once, again = np.split(run(model, {"x": x})[0], 2, axis=1)
    np.testing.assert_array_equal(once, -again)
    assert relative_error(once, x @ w) < (0.2 if bits == 4 else 0.02)


def test_weights_without_a_block_stay(new_graph: Any, matrix: Any, assert_unchanged: Any) -> None:
    g = new_graph([1, 32])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(32, 2)), shape=[1, 2]))
    assert_unchanged(QuantizeWeights(lambda name, inputs: None), model)
    with pytest.raises(ir.passes.PostconditionError, match="the matmul with w was not replaced"):
        QuantizeWeights(lambda name, inputs: WeightBits(4, 32)).ensures(model)


def test_an_odd_number_of_columns_in_the_result_is_noticed(new_graph: Any, matrix: Any) -> None:
    g = new_graph([1, 32])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(32, 2)), shape=[1, 2]))
    one = QuantizeWeights(lambda name, inputs: WeightBits(4, 32))
    one(model).model.graph.initializers["w.int4"].shape = ir.Shape([32, 3])
    with pytest.raises(ir.passes.PostconditionError, match=r"w.int4 has 3 columns"):
        one.ensures(model)
