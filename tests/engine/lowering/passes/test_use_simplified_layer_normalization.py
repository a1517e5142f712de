"""RMS norms by ONNX Runtime's older operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.use_simplified_layer_normalization import UseSimplifiedLayerNormalization


def rms_norm(new_graph: Any, **attributes: Any) -> ir.Model:
    g = new_graph([2, 8])
    scale = g.weight("scale", np.linspace(0.5, 2, 8, dtype=np.float32))
    return g.finish(g.op("RMSNormalization", g.x, scale, shape=[2, 8], **attributes))


@pytest.mark.parametrize("attributes", [{}, {"axis": -1, "epsilon": 0.1}, {"axis": 1, "epsilon": 0.1}])
def test_norms_give_the_same(new_graph: Any, attributes: dict[str, Any], run: Any, counts: Any) -> None:
    model = UseSimplifiedLayerNormalization()(rms_norm(new_graph, **attributes)).model
    assert counts(model) == {"SimplifiedLayerNormalization": 1}
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    size = np.sqrt((x**2).mean(-1, keepdims=True) + attributes.get("epsilon", 1e-5))
    model.graph.opset_imports[""], model.ir_version = 21, 10  # ONNX Runtime 1.20 reads this
    expected = x / size * np.linspace(0.5, 2, 8, dtype=np.float32)
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, rtol=1e-6)


def test_every_norm_must_be_over_the_last_axis(new_graph: Any) -> None:
    with pytest.raises(ir.passes.PreconditionError, match="normalises from axis 0"):
        UseSimplifiedLayerNormalization()(rms_norm(new_graph, axis=0))


def test_other_norms_stay(new_graph: Any, assert_unchanged: Any) -> None:
    g = new_graph([2, 8])
    model = g.finish(g.op("LayerNormalization", g.x, g.x, shape=[2, 8]))
    assert_unchanged(UseSimplifiedLayerNormalization(), model)


def test_a_norm_that_is_left_is_noticed(new_graph: Any) -> None:
    with pytest.raises(ir.passes.PostconditionError, match="an RMSNormalization is left"):
        UseSimplifiedLayerNormalization().ensures(rms_norm(new_graph))
