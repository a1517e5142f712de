"""INT4 weights behind DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine.engines.accuracy import relative_error
from lira_engine.lowering.passes.quantize_weights import QuantizeWeights, nearest_scales
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
    passes = [QuantizeWeights(lambda name, inputs: 64), common.RemoveUnusedNodesPass()]
    model = apply(g.finish(g.op("MatMul", g.x, right, shape=[3, 24])), passes)
    x = RANDOM.normal(size=(3, 256)).astype(np.float32)
    single = w.astype(np.float32)
    scales = nearest_scales("w", single, 64).astype(np.float16).astype(np.float32).repeat(64, axis=0)
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
    even, odd = (apply(build(n), [QuantizeWeights(lambda name, inputs: 32)]) for n in (8, 7))
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
    passes = [QuantizeWeights(lambda name, inputs: 32)]
    model = apply(g.finish(g.op("MatMul", g.x, g.weight("w", w), shape=[1, 2])), passes)
    assert (values(model, "w.scales") > 0).all() and not values(model, "w.int4")[32:].any()


@pytest.mark.parametrize("number, scale, integer", [(0.5, 0.25, 2), (0.5, 0.05, 7), (-0.5, 0.05, -7)])
def test_a_recipes_own_scales_are_used(
    number: float, scale: float, integer: int, new_graph: Any, values: Any
) -> None:
    """Also such that a weight is beyond them: -8 is left out."""
    g = new_graph([1, 32])
    w = np.full((32, 2), number, np.float32)
    scales = lambda name, weight, block: np.full((1, 2), scale, np.float32)  # noqa: E731
    passes = [QuantizeWeights(lambda name, inputs: 32, scales)]
    model = apply(g.finish(g.op("MatMul", g.x, g.weight("w", w), shape=[1, 2])), passes)
    assert (values(model, "w.int4") == integer).all()


def test_a_block_that_does_not_divide_a_weight_is_refused(new_graph: Any, matrix: Any) -> None:
    g = new_graph([1, 48])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(48, 2)), shape=[1, 2]))
    with pytest.raises(ir.passes.PreconditionError, match="multiple of the block 32"):
        QuantizeWeights(lambda name, inputs: 32)(model)


def test_a_weight_of_two_matmuls_is_refused(new_graph: Any, matrix: Any) -> None:
    g = new_graph([1, 32])
    w = g.weight("w", matrix(32, 32))
    model = g.finish(g.op("MatMul", g.op("MatMul", g.x, w, shape=[1, 32]), w, shape=[1, 32]))
    with pytest.raises(ir.passes.PreconditionError, match="two matmuls read w, expected one"):
        QuantizeWeights(lambda name, inputs: 32)(model)


def test_weights_without_a_block_stay(new_graph: Any, matrix: Any, assert_unchanged: Any) -> None:
    g = new_graph([1, 32])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(32, 2)), shape=[1, 2]))
    assert_unchanged(QuantizeWeights(lambda name, inputs: None), model)
    with pytest.raises(ir.passes.PostconditionError, match="the matmul with w was not replaced"):
        QuantizeWeights(lambda name, inputs: 32).ensures(model)


def test_an_odd_number_of_columns_in_the_result_is_noticed(new_graph: Any, matrix: Any) -> None:
    g = new_graph([1, 32])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(32, 2)), shape=[1, 2]))
    one = QuantizeWeights(lambda name, inputs: 32)
    one(model).model.graph.initializers["w.int4"].shape = ir.Shape([32, 3])
    with pytest.raises(ir.passes.PostconditionError, match=r"w.int4 has 3 columns"):
        one.ensures(model)
