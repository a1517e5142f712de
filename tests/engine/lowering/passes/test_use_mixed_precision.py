"""Matmuls in fp16, everything else in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine.engines.accuracy import relative_error
from lira_engine.lowering.passes.use_mixed_precision import KEPT, LONGEST_SUM, UseMixedPrecision, kept_in_fp32
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.session import open_session

pytestmark = pytest.mark.portable
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
RANDOM = np.random.default_rng(0)


@pytest.fixture
def two_matmuls(new_graph: Any, matrix: Any) -> ir.Model:
    """x [2,64] -> MatMul, Transpose, MatMul, Sigmoid -> y."""
    g = new_graph([2, 64])
    first = g.op("MatMul", g.x, g.weight("first", matrix(64, 32)), shape=[2, 32])
    turned = g.op("Transpose", first, shape=[32, 2], perm=[1, 0])
    second = g.op("MatMul", turned, g.weight("second", matrix(2, 16)), shape=[32, 16])
    return g.finish(g.op("Sigmoid", second, shape=[32, 16]))


def dtypes_of_matmul(model: ir.Model) -> set[ir.DataType | None]:
    matmul = next(node for node in model.graph if node.op_type == "MatMul")
    return {value.dtype for value in matmul.inputs if value is not None}


def test_matmuls_and_what_only_moves_numbers_are_fp16(two_matmuls: ir.Model, run: Any) -> None:
    x = RANDOM.normal(size=(2, 64)).astype(np.float32)
    expected = run(two_matmuls, {"x": x})[0]
    model = apply(two_matmuls, [UseMixedPrecision(), common.RemoveUnusedNodesPass()])
    assert [node.op_type for node in model.graph] == [
        *("Cast", "MatMul", "Transpose", "MatMul", "Cast", "Sigmoid"),
    ]
    matmuls = [node for node in model.graph if node.op_type == "MatMul"]
    assert all(value.dtype == HALF for node in matmuls for value in (*node.inputs, *node.outputs))
    assert (model.graph.inputs[0].dtype, model.graph.outputs[0].dtype) == (FLOAT, FLOAT)
    assert 0 < relative_error(run(model, {"x": x})[0], expected) < 2e-3


@pytest.mark.parametrize("beyond", [1e5, -1e5])
def test_a_weight_beyond_fp16_keeps_its_matmul_in_fp32_and_is_named(
    beyond: float, new_graph: Any, run: Any, matrix: Any
) -> None:
    g = new_graph([2, 8])
    large = matrix(8, 8)
    large[3, 4] = beyond
    model = apply(
        g.finish(g.op("MatMul", g.x, g.weight("large", large), shape=[2, 8])), [UseMixedPrecision()]
    )
    assert model.metadata_props[KEPT] == "large" and kept_in_fp32(model) == ("large",)
    x = RANDOM.normal(size=(2, 8)).astype(np.float32)
    assert relative_error(run(model, {"x": x})[0], x @ large) < 1e-6


def test_a_long_sum_stays_in_fp32(new_graph: Any, run: Any) -> None:
    """Ones over a mask of many pixels: the sum itself is beyond fp16."""
    g = new_graph([1, 70000])
    ones = np.ones((70000, 2), np.float32)
    model = apply(g.finish(g.op("MatMul", g.x, g.weight("ones", ones), shape=[1, 2])), [UseMixedPrecision()])
    assert dtypes_of_matmul(model) == {FLOAT}  # ONNX Runtime sums fp16 matmuls in fp32
    assert run(model, {"x": np.ones((1, 70000), np.float32)})[0].tolist() == [[70000, 70000]]


@pytest.mark.parametrize("terms, dtype", [(LONGEST_SUM, HALF), (LONGEST_SUM + 1, FLOAT)])
def test_only_the_longest_sum_and_shorter_ones_are_fp16(
    terms: int, dtype: ir.DataType, new_graph: Any
) -> None:
    g = new_graph([1, terms])
    w = g.weight("w", np.ones((terms, 2), np.float32))
    model = apply(g.finish(g.op("MatMul", g.x, w, shape=[1, 2])), [UseMixedPrecision()])
    assert dtypes_of_matmul(model) == {dtype}


def test_lira_s_longest_sum_is_fp16_and_pooling_over_a_mask_is_not() -> None:
    assert 14_336 <= LONGEST_SUM < 256 * 256


def test_what_several_read_in_fp32_is_cast_once(new_graph: Any, matrix: Any) -> None:
    """A second Cast would have the name of the first."""
    g = new_graph([2, 8])
    product = g.op("MatMul", g.x, g.weight("w", matrix(8, 8)), shape=[2, 8])
    total = g.op("Add", g.op("Sigmoid", product, shape=[2, 8]), product, shape=[2, 8])
    model = apply(g.finish(total), [UseMixedPrecision()])
    widened = [
        node for node in model.graph if node.op_type == "Cast" and node.attributes["to"].value == FLOAT
    ]
    assert len(widened) == 1 and len(list(widened[0].outputs[0].uses())) == 2


def output_types(model: ir.Model, folder: Path) -> dict[str, str]:
    ir.save(model, folder / "o.onnx")
    return {tensor.name: tensor.type for tensor in open_session(folder / "o.onnx").get_outputs()}


def test_an_fp16_output_is_cast_to_fp32_under_its_name_unless_in_half_names_it(
    tmp_path: Path, new_graph: Any, matrix: Any
) -> None:
    for wanted in (False, True):
        g = new_graph([2, 8])
        matmul = g.op("MatMul", g.x, g.weight("w", matrix(8, 4)), shape=[2, 4])
        model = apply(
            g.finish(matmul), [UseMixedPrecision(lambda name, wanted=wanted: wanted and name == "y")]
        )
        found = output_types(model, tmp_path)
        assert found == {"y": "tensor(float16)" if wanted else "tensor(float)"}


def test_an_fp16_cache_is_updated_in_fp16_and_read_in_fp32_elsewhere(tmp_path: Path, new_graph: Any) -> None:
    g = new_graph([1, 2, 8, 4])
    rows = g.weight("rows", np.ones((1, 2, 1, 4), np.float32))
    start = g.weight("start", np.zeros(1, np.int64))
    cache = g.op("TensorScatter", g.x, rows, start, shape=[1, 2, 8, 4], axis=-2)
    model = g.finish(g.op("Sigmoid", cache, shape=[1, 2, 8, 4]))
    assert UseMixedPrecision(lambda name: name == "x")(model).modified
    assert [node.op_type for node in model.graph] == ["TensorScatter", "Cast", "Sigmoid"]
    scatter = model.graph.node(0)
    assert (model.graph.inputs[0].dtype, scatter.inputs[1].dtype, scatter.outputs[0].dtype) == (HALF,) * 3
    assert output_types(model, tmp_path) == {"y": "tensor(float)"}


def test_a_graph_without_matmuls_stays(new_graph: Any, assert_unchanged: Any) -> None:
    """Nothing makes its Transpose fp16."""
    g = new_graph([2, 8])
    assert_unchanged(UseMixedPrecision(), g.finish(g.op("Transpose", g.x, shape=[8, 2], perm=[1, 0])))


def test_refuses_functions_and_fp16_arithmetic(new_graph: Any) -> None:
    g = new_graph([2, 8])
    model = g.finish(g.op("F", g.x, domain="lira", shape=[2, 8]))
    body = ir.Graph([], [], nodes=[], opset_imports={"": 24})
    model.functions["lira", "F", ""] = ir.Function("lira", "F", graph=body, attributes=[])
    with pytest.raises(ir.passes.PreconditionError, match="inline functions first"):
        UseMixedPrecision()(model)
    g = new_graph([2, 8], dtype=HALF)
    with pytest.raises(ir.passes.PreconditionError, match=r"Neg.1, a Neg, reads fp16"):
        UseMixedPrecision()(g.finish(g.op("Neg", g.x, dtype=HALF)))


@pytest.mark.parametrize("fault", ["mixed matmul", "fp16 activation", "fp16 output"])
def test_a_wrong_result_is_noticed(two_matmuls: ir.Model, fault: str) -> None:
    model = UseMixedPrecision()(two_matmuls).model
    UseMixedPrecision().ensures(model)
    nodes = {node.op_type: node for node in model.graph}
    match fault:
        case "mixed matmul":
            nodes["MatMul"].outputs[0].dtype = FLOAT
        case "fp16 activation":
            nodes["Sigmoid"].replace_input_with(0, nodes["MatMul"].outputs[0])
        case _:
            model.graph.outputs[0] = nodes["MatMul"].outputs[0]
    with pytest.raises(ir.passes.PostconditionError, match=r"mixes fp16|reads fp16|output .* is fp16"):
        UseMixedPrecision().ensures(model)
