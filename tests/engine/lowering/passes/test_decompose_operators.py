"""Attention, Gelu and norms in basic operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.accuracy import relative_error
from lira_engine.lowering.passes.decompose_operators import DecomposeOperators

pytestmark = pytest.mark.portable
RANDOM = np.random.default_rng(0)
SHAPE = [1, 2, 5, 8]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_gelu_and_norms_give_the_same(
    masked: bool, new_graph: Any, run: Any, counts: Any, matrix: Any
) -> None:
    def build() -> ir.Model:
        g = new_graph([1, 2, 5, 8])
        inputs = [g.x, g.op("Gelu", g.x, shape=[1, 2, 5, 8]), g.x]
        if masked:
            inputs.append(g.weight("mask", np.tri(5, dtype=bool)))
        y = g.op("Attention", *inputs, shape=[1, 2, 5, 8])
        channels = [g.weight(name, matrix(1, 2)[0] + 1) for name in ("by", "more")]
        y = g.op("GroupNormalization", y, *channels, shape=[1, 2, 5, 8], num_groups=1, epsilon=1e-5)
        scale = g.weight("scale", matrix(1, 8)[0])
        return g.finish(g.op("RMSNormalization", y, scale, shape=[1, 2, 5, 8], axis=-1, epsilon=1e-5))

    x = RANDOM.normal(size=(1, 2, 5, 8)).astype(np.float32)
    model = DecomposeOperators()(build()).model
    assert not {"Attention", "Gelu", "GroupNormalization", "RMSNormalization"} & set(counts(model))
    assert relative_error(run(model, {"x": x})[0], run(build(), {"x": x})[0]) < 1e-5


def test_other_operators_stay(new_graph: Any, assert_unchanged: Any) -> None:
    g = new_graph(SHAPE)
    assert_unchanged(DecomposeOperators(), g.finish(g.op("LayerNormalization", g.x, g.x, shape=SHAPE)))


@pytest.mark.parametrize(
    "op_type, inputs, attributes, reason",
    [
        ("Attention", 3, {"is_causal": 1}, "more than plain attention"),
        ("Attention", 4, {}, "a boolean mask"),
        ("Gelu", 1, {"approximate": "tanh"}, "the exact Gelu"),
        ("GroupNormalization", 3, {"num_groups": 1}, "the shape of its input is not known"),
        ("RMSNormalization", 2, {"axis": 1}, "normalises from axis 1"),
    ],
)
def test_refuses_what_it_does_not_know(
    op_type: str, inputs: int, attributes: dict[str, Any], reason: str, new_graph: Any
) -> None:
    g = new_graph(["N", *SHAPE[1:]] if op_type == "GroupNormalization" else SHAPE)
    model = g.finish(g.op(op_type, *[g.x] * inputs, shape=SHAPE, **attributes))
    with pytest.raises(ir.passes.PreconditionError, match=reason):
        DecomposeOperators()(model)
    with pytest.raises(ir.passes.PostconditionError, match=f"is left, a {op_type}"):
        DecomposeOperators().ensures(model)


def test_refuses_a_group_norm_with_a_scale_per_group(new_graph: Any) -> None:
    g = new_graph(SHAPE)
    model = g.finish(g.op("GroupNormalization", g.x, g.x, g.x, shape=SHAPE, num_groups=1), opset=20)
    with pytest.raises(ir.passes.PreconditionError, match="a scale per channel"):
        DecomposeOperators()(model)
