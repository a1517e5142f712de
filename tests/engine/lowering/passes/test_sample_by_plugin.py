"""Deformable sampling by NVIDIA's plugin, which a function stands in for here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine import Bundle
from lira_engine.engines.accuracy import check_outputs, relative_error
from lira_engine.lowering.passes.resolve_cast_like import ResolveCastLike
from lira_engine.lowering.passes.sample_by_plugin import PLUGIN, SampleByPlugin
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline

pytestmark = pytest.mark.portable
FLOAT = ir.DataType.FLOAT


def test_the_plugin_gives_what_grid_sample_gives(
    run: Any, counts: Any, sampling: Any, define_plugin: Any
) -> None:
    passes = [SampleByPlugin("1"), common.InlinePass(), ResolveCastLike(), common.RemoveUnusedFunctionsPass()]
    model = apply(sampling.model(), passes)
    assert counts(model) == {"Constant": 3, PLUGIN: 1, "Reshape": 1} and not model.functions
    define_plugin(model, len(sampling.levels))
    expected = run(sampling.model(), sampling.feeds())[0]
    assert relative_error(run(model, sampling.feeds())[0], expected) < 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dialect", ["cache_update", "decomposed"])
def test_the_pixel_encoder_by_the_plugin_answers_as_recorded(
    nano_bundle: Path, precision: str, dialect: str, run: Any, define_plugin: Any
) -> None:
    bundle = Bundle.open(nano_bundle)
    passes = tensorrt_pipeline("pixel_encoder", precision, dialect, plugin="2")
    model = apply(ir.load(bundle.stage_file("pixel_encoder")), passes)
    nodes = [node for node in model.graph if node.domain]
    assert {node.op_type for node in nodes} == {PLUGIN} and not model.functions
    for node in nodes:
        given = [node.inputs[0], *node.inputs[3:]]
        assert [value.dtype for value in given if value is not None] == [FLOAT] * 3  # the bilinear shares
        assert node.attributes["plugin_version"].as_string() == "2"
    vectors = bundle.check_vectors("pixel_encoder")
    (levels,) = {ir.convenience.get_const_tensor(node.inputs[1]).shape[0] for node in nodes}  # type: ignore
    found = run(define_plugin(model, int(levels)), vectors.inputs)
    names = [value.name or "" for value in model.graph.outputs]
    check_outputs("it", precision, dict(zip(names, found, strict=True)), vectors.outputs, vectors.noise)


def test_calls_with_such_a_body_stay(new_graph: Any, assert_unchanged: Any, sampling: Any) -> None:
    model = SampleByPlugin("1")(sampling.model()).model
    assert_unchanged(SampleByPlugin("1"), model)
    g = new_graph([2, 8])
    assert_unchanged(SampleByPlugin("1"), g.finish(g.op("GridSample", g.x, g.x, shape=[2, 8])))


def test_refuses_inputs_of_unknown_shape(sampling: Any) -> None:
    model = sampling.model()
    model.graph.inputs[1].shape = None
    with pytest.raises(ir.passes.PreconditionError, match="call: level_shapes and the shapes of its inputs"):
        SampleByPlugin("1")(model)


def test_another_body_is_noticed(sampling: Any) -> None:
    with pytest.raises(ir.passes.PostconditionError, match="the body of call has a "):
        SampleByPlugin("1").ensures(sampling.model())
