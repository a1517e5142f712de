"""Scales per channel that move into weights: the floats' result stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.accuracy import rms_error
from lira_engine.lowering.passes.scale_channels import ChannelScale, ScaleChannels

pytestmark = pytest.mark.portable
RANDOM = np.random.default_rng(0)
K, N = 24, 12
SCALE = np.exp(RANDOM.normal(size=K)).astype(np.float32)
ROUNDING = 1e-6
"""Of fp32, as a share of the output's root mean square."""


def one(divided: tuple[str, ...], multiplied: tuple[str, ...]) -> ScaleChannels:
    return ScaleChannels([ChannelScale(divided, multiplied, lambda: SCALE)])


def norm_model(new_graph: Any, matrix: Any, op_type: str, dtype: str = "float32", **changed: Any) -> ir.Model:
    """x through a norm with weights, then two matmuls, whose results are joined."""
    g = new_graph([3, K])
    given = [g.weight("norm", RANDOM.uniform(1, 2, K).astype(np.float32))]
    if op_type == "LayerNormalization":
        given.append(g.weight("bias", RANDOM.normal(size=K).astype(np.float32)))
    normed = g.op(op_type, g.x, *given, shape=[3, K], axis=changed.get("axis", -1))
    results = []
    for name in ("a", "b"):
        right = g.weight(name, matrix(K, N + len(results)).astype(dtype))
        if dtype != "float32":
            right = g.op("Cast", right, shape=[K, N], to=ir.DataType.FLOAT)
        results.append(g.op("MatMul", normed, right, shape=[3, N]))
    if "reader" in changed:
        results.append(g.op(changed["reader"], normed, shape=[3, K]))
    return g.finish(g.op("Concat", *results, shape=[3, "J"], axis=-1))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op_type", ["LayerNormalization", "RMSNormalization"])
def test_a_norms_scale_moves_into_the_matmuls_after_it(
    op_type: str, dtype: str, new_graph: Any, matrix: Any, run: Any, values: Any
) -> None:
    x = {"x": RANDOM.normal(size=(3, K)).astype(np.float32)}
    model = norm_model(new_graph, matrix, op_type, dtype)
    before = run(model, x)[0]
    weight, norm = values(model, "a"), values(model, "norm")
    divided = ("norm", "bias") if op_type == "LayerNormalization" else ("norm",)
    scaled = one(divided, ("a", "b"))(model).model
    assert rms_error(run(scaled, x)[0], before) < ROUNDING
    np.testing.assert_array_equal(values(scaled, "a"), weight * SCALE[:, None])
    np.testing.assert_array_equal(values(scaled, "norm"), norm / SCALE)
    assert not any(node.op_type == "Cast" for node in scaled.graph)


@pytest.mark.parametrize("gated, act", [(True, "Sigmoid"), (False, "Relu")])
def test_a_matmuls_scale_moves_into_the_matmul_after_it(
    gated: bool, act: str, new_graph: Any, matrix: Any, run: Any
) -> None:
    """Through a bias, a product with a gate, and Relu."""
    g = new_graph([3, N])
    up = g.op("MatMul", g.x, g.weight("up", matrix(N, K)), shape=[3, K])
    up = g.op("Add", up, g.weight("bias", RANDOM.normal(size=K).astype(np.float32)), shape=[3, K])
    if gated:
        gate = g.op(
            act, g.op("MatMul", g.x, g.weight("gate", matrix(N, K + 1)[:, :K]), shape=[3, K]), shape=[3, K]
        )
        up = g.op("Mul", gate, up, shape=[3, K])
    else:
        up = g.op(act, up, shape=[3, K])
    model = g.finish(g.op("MatMul", up, g.weight("down", matrix(K, N)), shape=[3, N]))
    x = {"x": RANDOM.normal(size=(3, N)).astype(np.float32)}
    before = run(model, x)[0]
    scaled = one(("up", "bias"), ("down",))(model).model
    assert rms_error(run(scaled, x)[0], before) < ROUNDING


REFUSED: dict[str, tuple[Callable[..., ir.Model], tuple[str, ...], tuple[str, ...], str]] = {
    "another reader": (
        lambda g, m: norm_model(g, m, "RMSNormalization", reader="Identity"),
        ("norm",), ("a", "b"), "a Concat, reads Identity",
    ),
    "a nonlinear reader": (
        lambda g, m: norm_model(g, m, "RMSNormalization", reader="Gelu"),
        ("norm",), ("a", "b"), "a Gelu, reads RMSNormalization",
    ),
    "a matmul is missing": (
        lambda g, m: norm_model(g, m, "RMSNormalization"), ("norm",), ("a",), "whose channels are divided",
    ),
    "a bias is missing": (
        lambda g, m: norm_model(g, m, "LayerNormalization"), ("norm",), ("a", "b"),
        "a LayerNormalization, reads norm",
    ),
    "nothing is divided": (
        lambda g, m: norm_model(g, m, "RMSNormalization"), (), ("a", "b"), "but no input that is divided",
    ),
    "another number of channels": (
        lambda g, m: norm_model(g, m, "RMSNormalization"), ("norm", "a"), ("b",),
        "a has 12 channels, its scale has 24",
    ),
    "no such weight": (
        lambda g, m: norm_model(g, m, "RMSNormalization"), ("norms",), ("a", "b"), "no weight norms",
    ),
    "another axis": (
        lambda g, m: norm_model(g, m, "RMSNormalization", axis=0), ("norm",), ("a", "b"),
        "expected the last one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refuses_what_would_change_the_result(case: str, new_graph: Any, matrix: Any) -> None:
    build, divided, multiplied, message = REFUSED[case]
    with pytest.raises(ir.passes.PreconditionError) as caught:
        one(divided, multiplied)(build(new_graph, matrix))
    assert message in str(caught.value.__cause__ or caught.value)


def test_a_divided_output_of_the_graph_is_refused(new_graph: Any) -> None:
    g = new_graph([3, K])
    y = g.op("RMSNormalization", g.x, g.weight("norm", np.ones(K, np.float32)), shape=[3, K])
    with pytest.raises(ir.passes.PreconditionError, match="output y would be divided"):
        one(("norm",), ())(g.finish(y))


@pytest.mark.parametrize("number", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_that_is_not_positive_is_refused(number: float, new_graph: Any, matrix: Any) -> None:
    scale = SCALE.copy()
    scale[3] = number
    bad = ScaleChannels([ChannelScale(("norm",), ("a", "b"), lambda: scale)])
    with pytest.raises(ir.passes.PreconditionError, match="no vector of positive numbers"):
        bad(norm_model(new_graph, matrix, "RMSNormalization"))


def test_a_weight_that_stayed_in_fp16_is_noticed(new_graph: Any, matrix: Any) -> None:
    model = norm_model(new_graph, matrix, "RMSNormalization", "float16")
    with pytest.raises(ir.passes.PostconditionError, match="a is not in fp32"):
        one(("norm",), ("a", "b")).ensures(model)
