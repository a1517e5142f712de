"""Initializers that become inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lira_engine.lowering.passes.feed_weights import FeedWeights


def test_wanted_weights_come_from_outside_in_reading_order(new_graph: Any, run: Any, matrix: Any) -> None:
    a, b, c = matrix(8, 8), matrix(8, 4), matrix(4, 4)
    g = new_graph([3, 8])
    last, first, kept = g.weight("w.last", b), g.weight("w.first", a), g.weight("kept", c)
    hidden = g.op("MatMul", g.op("MatMul", g.x, first, shape=[3, 8]), last, shape=[3, 4])
    model = g.finish(g.op("MatMul", hidden, kept, shape=[3, 4]), opset=21)
    FeedWeights(lambda name: name.startswith("w."))(model)
    assert [value.name for value in model.graph.inputs] == ["x", "w.first", "w.last"]
    assert list(model.graph.initializers) == ["kept"]
    np.testing.assert_array_equal(model.graph.inputs[1].const_value.numpy(), a)
    for value in model.graph.inputs:
        value.const_value = None
    x = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    found = run(model, {"x": x, "w.first": 2 * a, "w.last": b})[0]
    np.testing.assert_allclose(found, 2 * x @ a @ b @ c, rtol=1e-6, atol=1e-6)


def test_others_stay(case: Any, assert_unchanged: Any) -> None:
    assert_unchanged(FeedWeights(lambda name: False), case.model())
    with pytest.raises(Exception, match="w is no input of the graph"):
        FeedWeights(lambda name: True).ensures(case.model())
