"""Forms for weights that are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine import LiraError
from lira_engine.lowering.passes.require_matmuls import RequireMatMuls
from lira_engine.lowering.pipeline import apply

pytestmark = pytest.mark.portable


def build(new_graph: Any) -> ir.Model:
    g = new_graph([2, 4])
    right = g.op("Cast", g.weight("w", np.ones((4, 3), np.float16)), shape=[4, 3], to=1)
    total = g.op("Add", g.op("MatMul", g.x, right, shape=[2, 3]), g.weight("b", np.ones(3, np.float32)))
    model: ir.Model = g.finish(total)
    return model


def test_weights_of_matmuls_are_found(new_graph: Any, assert_unchanged: Any) -> None:
    assert_unchanged(RequireMatMuls(["w"]), build(new_graph))


@pytest.mark.parametrize("name", ["b", "v"])
def test_others_are_refused_with_what_mends_it(name: str, new_graph: Any) -> None:
    with pytest.raises(LiraError, match=f"no matmul reads {name}, which .*; calibrate again with"):
        apply(build(new_graph), [RequireMatMuls(["w", name])])
