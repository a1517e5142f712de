"""ONNX Runtime's own operators in fp16."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import pytest

from lira_engine.engines.llm_tensors import is_cache
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.passes.use_half_contrib_operators import UseHalfContribOperators
from lira_engine.lowering.pipeline import apply

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


@pytest.fixture
def before(small_llm: Any) -> ir.Model:
    """The int4 language model before the pass."""
    passes = list(cuda_pipeline("llm", "int4"))
    index = next(i for i, one in enumerate(passes) if type(one) is UseHalfContribOperators)
    return apply(small_llm(), passes[:index])


def test_attention_and_4_bit_matmuls_are_fp16_between_fp32_neighbours(
    before: ir.Model, assert_unchanged: Any
) -> None:
    with pytest.raises(ir.passes.PostconditionError, match="is not in fp16"):
        UseHalfContribOperators(is_cache).ensures(before)
    assert UseHalfContribOperators(is_cache)(before).modified
    nodes = [node for node in before.graph if node.domain == "com.microsoft"]
    assert {node.op_type for node in nodes} == {"GroupQueryAttention", "MatMulNBits"}
    assert {value.dtype for node in nodes for value in node.outputs} == {HALF}
    for value in before.graph.outputs:
        assert value.dtype == (HALF if is_cache(value.name or "") else FLOAT), value.name
    norms = [node for node in before.graph if node.op_type == "RMSNormalization"]
    assert norms and {node.inputs[0].dtype for node in norms if node.inputs[0] is not None} == {FLOAT}
    onnx.checker.check_model(ir.to_proto(before))
    assert_unchanged(UseHalfContribOperators(is_cache), before)


def test_an_output_that_stays_fp32_keeps_its_name(before: ir.Model) -> None:
    names = [value.name for value in before.graph.outputs]
    model = UseHalfContribOperators()(before).model
    assert [value.name for value in model.graph.outputs] == names
    assert {value.dtype for value in model.graph.outputs} == {FLOAT}


def test_a_graph_without_these_operators_stays(new_graph: Any, assert_unchanged: Any) -> None:
    g = new_graph([2, 8])
    assert_unchanged(UseHalfContribOperators(), g.finish(g.op("Gelu", g.x, domain="com.microsoft")))


def test_refuses_other_types(before: ir.Model) -> None:
    node = next(node for node in before.graph if node.op_type == "MatMulNBits")
    node.inputs[0].dtype = ir.DataType.DOUBLE
    with pytest.raises(ir.passes.PreconditionError, match="reads DOUBLE, expected fp32 or fp16"):
        UseHalfContribOperators()(before)
