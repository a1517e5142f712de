"""Deformable sampling by gathers beside the portable function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine.engines.accuracy import relative_error
from lira_engine.lowering.passes.resolve_cast_like import ResolveCastLike
from lira_engine.lowering.passes.sample_by_gathers import SampleByGathers
from lira_engine.lowering.pipeline import apply

pytestmark = pytest.mark.portable


def test_gathers_give_what_grid_sample_gives(run: Any, counts: Any, sampling: Any) -> None:
    """Also on the edges of the maps, half outside and far outside of them."""
    expected = run(sampling.model(), sampling.feeds())[0]
    assert np.abs(expected[0, 2:4]).max() == 0 < np.abs(expected[0, 0]).max()
    passes = [SampleByGathers(), common.InlinePass(), ResolveCastLike(), common.RemoveUnusedFunctionsPass()]
    model = apply(sampling.model(), passes)
    found = counts(model)
    assert "GridSample" not in found and not model.functions and found["Gather"] >= 8
    assert relative_error(run(model, sampling.feeds())[0], expected) < 1e-6


def test_calls_with_such_a_body_stay(new_graph: Any, assert_unchanged: Any, sampling: Any) -> None:
    model = SampleByGathers()(sampling.model()).model
    assert_unchanged(SampleByGathers(), model)
    g = new_graph([2, 8])
    assert_unchanged(SampleByGathers(), g.finish(g.op("GridSample", g.x, g.x, shape=[2, 8])))


def test_refuses_inputs_of_unknown_shape(sampling: Any) -> None:
    model = sampling.model()
    model.graph.inputs[0].shape = None
    with pytest.raises(ir.passes.PreconditionError, match="call: level_shapes and the shapes of its inputs"):
        SampleByGathers()(model)


def test_a_body_with_grid_sample_is_noticed(sampling: Any) -> None:
    with pytest.raises(ir.passes.PostconditionError, match="the body of call has a GridSample"):
        SampleByGathers().ensures(sampling.model())
