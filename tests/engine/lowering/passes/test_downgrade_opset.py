"""A graph in an older opset: what is the same there passes, what is not is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from lira_engine.errors import LiraError
from lira_engine.lowering.passes.downgrade_opset import DowngradeOpset

TO_21 = DowngradeOpset(21, ir_version=10)


def one_node(
    op_type: str, *shapes: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT, **kw: Any
) -> ir.Model:
    inputs = [ir.val(f"x{i}", dtype=dtype, shape=shape) for i, shape in enumerate(shapes)]
    output = ir.val("y", dtype=dtype)
    node = ir.node(op_type, inputs, kw, outputs=[output], name="the_node")
    graph = ir.Graph(inputs, [output], nodes=[node], opset_imports={"": 24}, name="one_node")
    return ir.Model(graph, ir_version=12)


@pytest.mark.portable
@pytest.mark.parametrize(
    "model",
    [
        one_node("Conv", (1, 3, 8, 8), (4, 3, 3, 3), kernel_shape=[3, 3]),
        one_node("GridSample", (1, 2, 5, 5), (1, 3, 3, 2), mode="linear", align_corners=0),
        one_node("Transpose", (2, 3), perm=[1, 0]),
        one_node("MaxPool", (1, 1, 5, 5), kernel_shape=[2, 2], ceil_mode=0),
        one_node("Cast", (2, 3), to=int(ir.DataType.FLOAT)),
    ],
    ids=lambda model: next(iter(model.graph)).op_type,
)
def test_operators_that_only_got_more_types_are_kept(model: ir.Model) -> None:
    feeds = {
        v.name: np.random.default_rng(0).uniform(-1, 1, [*v.shape]).astype("f") for v in model.graph.inputs
    }
    expected = evaluate(model, feeds)
    TO_21(model)
    assert (model.opset_imports[""], model.ir_version) == (21, 10)
    proto = ir.serde.serialize_model(model)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    np.testing.assert_array_equal(evaluate(model, feeds), expected)


def evaluate(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.serde.serialize_model(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def test_a_newer_attribute_with_its_default_is_removed() -> None:
    model = one_node("Cast", (2, 3), to=int(ir.DataType.FLOAT16), round_mode="up")
    TO_21(model)
    assert set(next(iter(model.graph)).attributes) == {"to"}


@pytest.mark.parametrize(
    "model, reason",
    [
        (
            one_node("TensorScatter", (1, 2, 3, 4), (1, 2, 1, 4)),
            "TensorScatter .node the_node.*not exist there",
        ),
        (one_node("RMSNormalization", (2, 3), (3,)), "RMSNormalization .*not exist there"),
        (
            one_node("MaxPool", (1, 1, 5, 5), kernel_shape=[2, 2], ceil_mode=1),
            "ceil_mode means something else",
        ),
        (one_node("Cast", (2, 3), to=1, round_mode="down"), "no attribute round_mode there"),
        (
            one_node("Conv", (1, 3, 8, 8), (4, 3, 3, 3), dtype=ir.DataType.BFLOAT16),
            "not take tensor.bfloat16.",
        ),
        (one_node("Invented", (2, 3)), "Invented .*not exist there"),
    ],
)
def test_refuses_operators_that_mean_something_else(model: ir.Model, reason: str) -> None:
    with pytest.raises(LiraError, match=reason):
        TO_21(model)


def test_an_older_graph_stays_in_its_opset(assert_unchanged: Any) -> None:
    model = one_node("Transpose", (2, 3), perm=[1, 0])
    model.graph.opset_imports[""], model.ir_version = 17, 8
    assert_unchanged(TO_21, model)
    assert (model.opset_imports[""], model.ir_version) == (17, 8)


def test_functions_must_be_inlined_first() -> None:
    model = one_node("Transpose", (2, 3), perm=[1, 0])
    body = ir.Graph([], [], nodes=[], opset_imports={"": 24})
    model.functions["lira", "F", ""] = ir.Function("lira", "F", graph=body, attributes=[])
    with pytest.raises(ir.passes.PreconditionError, match="inlined first"):
        TO_21(model)


def test_a_version_that_is_left_is_noticed() -> None:
    for opset, ir_version in ((22, 10), (21, 11)):
        model = one_node("Transpose", (2, 3), perm=[1, 0])
        model.graph.opset_imports[""], model.ir_version = opset, ir_version
        with pytest.raises(ir.passes.PostconditionError, match=f"opset {opset} and IR version {ir_version}"):
            TO_21.ensures(model)
