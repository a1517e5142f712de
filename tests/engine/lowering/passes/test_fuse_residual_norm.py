"""Residual sums and the norms that follow them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.fuse_residual_norm import FuseResidualNorm
from lira_engine.lowering.passes.use_simplified_layer_normalization import UseSimplifiedLayerNormalization
from lira_engine.lowering.pipeline import apply


def test_residual_sums_join_their_norms(counts: Any, assert_unchanged: Any, small_llm: Any) -> None:
    """All norms but the first follow a residual sum; the last sum follows the asked rows of both summands."""
    model = apply(small_llm(), [UseSimplifiedLayerNormalization()])
    with pytest.raises(ir.passes.PostconditionError, match="was not fused with the sum before it"):
        FuseResidualNorm().ensures(model)
    found = counts(apply(model, [FuseResidualNorm()]))
    assert found["SkipSimplifiedLayerNormalization"] == 4
    assert found["SimplifiedLayerNormalization"] == 1
    assert found["Add"] == 1  # positions
    assert_unchanged(FuseResidualNorm(), model)


def test_a_fused_norm_keeps_its_epsilon(new_graph: Any, run: Any, counts: Any) -> None:
    g = new_graph([2, 8])
    scale, y = g.weight("scale", np.linspace(0.5, 2, 8, dtype=np.float32)), g.op("Neg", g.x, shape=[2, 8])
    total = g.op("Add", g.x, g.op("Abs", y, shape=[2, 8]), shape=[2, 8])
    norm = g.op("SimplifiedLayerNormalization", total, scale, shape=[2, 8], epsilon=0.5, axis=-1)
    model = FuseResidualNorm()(g.finish(norm, opset=21)).model
    assert counts(model)["SkipSimplifiedLayerNormalization"] == 1
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    both = x + np.abs(x)
    expected = both / np.sqrt((both**2).mean(-1, keepdims=True) + 0.5) * np.linspace(0.5, 2, 8)
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, rtol=1e-5)


def test_a_sum_that_broadcasts_stays(new_graph: Any, assert_unchanged: Any) -> None:
    g = new_graph([1, "S", 4])
    y, scale = g.weight("y", np.ones(4, np.float32)), g.weight("scale", np.ones(4, np.float32))
    total = g.op("Add", g.x, y, shape=[1, "S", 4])
    model = g.finish(g.op("SimplifiedLayerNormalization", total, scale, epsilon=1e-5))
    assert_unchanged(FuseResidualNorm(), model)


def test_a_computed_scale_stays(new_graph: Any, assert_unchanged: Any) -> None:
    g = new_graph([1, 4])
    total = g.op("Add", g.x, g.x, shape=[1, 4])
    scale = g.op("Neg", g.weight("scale", np.ones(4, np.float32)), shape=[4])
    model = g.finish(g.op("SimplifiedLayerNormalization", total, scale, epsilon=1e-5))
    assert_unchanged(FuseResidualNorm(), model)
