"""Deformable sampling as TensorRT is given it, run by ONNX Runtime beside the portable function."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine import Bundle
from lira_engine.engines.accuracy import check_outputs, relative_error
from lira_engine.lowering.function_body import FunctionBody
from lira_engine.lowering.passes.resolve_cast_like import ResolveCastLike
from lira_engine.lowering.passes.sample_by_gathers import SampleByGathers
from lira_engine.lowering.passes.sample_by_plugin import PLUGIN, SampleByPlugin
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline
from lira_engine.ort.session import open_session
from lira_export.graphs.functions import deformable_sampling

pytestmark = pytest.mark.portable
FLOAT = ir.DataType.FLOAT
RANDOM = np.random.default_rng(0)
SHAPES = [(3, 5), (6, 4)]
HEADS, COLUMNS, QUERIES, POINTS = 2, 4, 7, 3


def run(model: ir.Model, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    path = folder / "g.onnx"
    ir.save(model, path, external_data="g.data", size_threshold_bytes=1024)
    return open_session(path, threads=1).run(None, feeds)


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def sampling() -> ir.Model:
    pixels = sum(h * w for h, w in SHAPES)
    value = ir.val("value", FLOAT, [1, pixels, HEADS, COLUMNS])
    locations = ir.val("locations", FLOAT, [1, QUERIES, HEADS, len(SHAPES), POINTS, 2])
    weights = ir.val("weights", FLOAT, [1, QUERIES, HEADS, len(SHAPES), POINTS])
    call = ir.node(
        "DeformableSampling",
        [value, locations, weights],
        {"level_shapes": [side for shape in SHAPES for side in shape]},
        domain="lira",
        name="call",
    )
    y = call.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(FLOAT), ir.Shape([1, QUERIES, HEADS * COLUMNS])
    opsets = {"": 24, "lira": 1}
    graph = ir.Graph([value, locations, weights], [y], nodes=[call], opset_imports=opsets, name="g")
    body = deformable_sampling(SHAPES, HEADS, COLUMNS, POINTS)
    return ir.Model(graph, ir_version=11, functions=[body])


def plugin(levels: int, opset: int) -> ir.Function:
    """What NVIDIA's README says that its plugin does, in standard operators: value [N,S,M,D] holds the maps
    one after the other, spatial_shapes [L,2] their heights and widths, level_start_index [L] where each
    begins; sampling_locations [N,Lq,M,L,P,2] and attention_weights [N,Lq,M,L,P] are summed to [N,Lq,M,D]."""
    body = FunctionBody("value", "spatial_shapes", "level_start_index", "locations", "weights")
    value, shapes, starts, locations, weights = body.inputs
    wide = [body.op("Cast", x, to=ir.DataType.INT64) for x in (shapes, starts)]
    one_head = body.op("Transpose", value, perm=[0, 2, 3, 1])  # [1, M, D, S]
    total = None
    for level in range(levels):
        sides = body.op("Gather", wide[0], body.constant(level))
        start = body.op("Gather", wide[1], body.constant([level]))
        end = body.op("Add", start, body.op("ReduceProd", sides, keepdims=1))
        pixels = body.op("Slice", one_head, start, end, body.constant([3]))
        heads = body.op("Shape", value, start=2, end=4)
        image = body.op("Reshape", pixels, body.op("Concat", heads, sides, axis=0))  # [M, D, h, w]
        points = body.op("Gather", locations, body.constant(level), axis=3)  # [1, Lq, M, P, 2]
        grid = body.op("Squeeze", body.op("Transpose", points, perm=[0, 2, 1, 3, 4]), body.constant([0]))
        grid = body.op("Sub", body.op("Mul", grid, body.number(2)), body.number(1))
        samples = body.op("GridSample", image, grid, mode="linear", padding_mode="zeros", align_corners=0)
        share = body.op("Gather", weights, body.constant(level), axis=3)  # [1, Lq, M, P]
        share = body.op("Transpose", share, perm=[2, 0, 1, 3])  # [M, 1, Lq, P]
        summed = body.op("ReduceSum", body.op("Mul", samples, share), body.constant([3]), keepdims=0)
        total = summed if total is None else body.op("Add", total, summed)  # [M, D, Lq]
    assert total is not None
    by_query = body.op("Unsqueeze", body.op("Transpose", total, perm=[2, 0, 1]), body.constant([0]))
    attributes = [ir.AttrString(name, "") for name in ("plugin_version", "plugin_namespace")]
    return body.function(("lira", PLUGIN, ""), [by_query], attributes, opset)


def with_plugin(model: ir.Model, levels: int) -> ir.Model:
    definition = plugin(levels, model.opset_imports[""])
    model.functions[definition.identifier()] = definition
    return model


@pytest.mark.parametrize("how", ["gathers", "plugin"])
def test_sampling_by_gathers_or_a_plugin_is_sampling_by_grid_sample(how: str, tmp_path: Path) -> None:
    """Places well inside, on the edges, half outside and far outside of the maps."""
    shape = (1, QUERIES, HEADS, len(SHAPES), POINTS)
    locations = RANDOM.uniform(-0.3, 1.3, (*shape, 2)).astype(np.float32)
    locations[0, 0] = 0
    locations[0, 1] = 1
    locations[0, 2] = 50
    locations[0, 3] = -50
    feeds = {
        "value": RANDOM.normal(size=(1, sum(h * w for h, w in SHAPES), HEADS, COLUMNS)).astype(np.float32),
        "locations": locations,
        "weights": RANDOM.uniform(size=shape).astype(np.float32),
    }
    expected = run(sampling(), feeds, tmp_path)[0]
    assert np.abs(expected[0, 2:4]).max() == 0 < np.abs(expected[0, 0]).max()
    body = SampleByGathers() if how == "gathers" else SampleByPlugin("1")
    model = apply(
        sampling(), [body, common.InlinePass(), ResolveCastLike(), common.RemoveUnusedFunctionsPass()]
    )
    used = counts(model)
    assert "GridSample" not in used and not model.functions
    if how == "gathers":
        assert used["Gather"] >= 8
    else:
        assert used == {"Constant": 3, PLUGIN: 1, "Reshape": 1}
        with_plugin(model, len(SHAPES))
    assert relative_error(run(model, feeds, tmp_path)[0], expected) < 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dialect", ["cache_update", "decomposed"])
def test_the_pixel_encoder_by_the_plugin_answers_as_recorded(
    nano_bundle: Path, precision: str, dialect: str, tmp_path: Path
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
    found = run(with_plugin(model, int(levels)), vectors.inputs, tmp_path)
    names = [value.name or "" for value in model.graph.outputs]
    check_outputs("it", precision, dict(zip(names, found, strict=True)), vectors.outputs, vectors.noise)
