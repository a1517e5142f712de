"""Which scales can move, how large they are, and what they gain."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lira_calib.methods.smoothing import smoothing_groups, smoothing_scale
from lira_calib.methods.statistics import InputStatistics
from lira_calib.runs.observe import observe
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.engines.recipe import Form, Smoothing, StageRecipe, smoothing_key
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.passes.scale_channels import ChannelScale, ScaleChannels
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.session import open_session

NORM = "a = LayerNormalization<axis=-1>(x, n, b)"
WIDTH = 128


def graph(nodes: str, outputs: str = "y", half: str = "", **shapes: tuple[int, ...]) -> ir.Model:
    """Return a model of x [1, 6, K] with random weights of these shapes; those named in `half` are fp16."""
    rng, first = np.random.default_rng(0), next(iter(shapes.values()))[0]
    dtypes = {name: "float16" if name in half.split() else "float" for name in shapes}
    inputs = [f"float[1,6,{first}] x"]
    for name, shape in shapes.items():
        inputs.append(f"{dtypes[name]}[{','.join(map(str, shape))}] {name}")
    made = ", ".join(f"float[1,6,N{i}] {name}" for i, name in enumerate(outputs.split()))
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({", ".join(inputs)}) => ({made}) {{ {nodes} }}'
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    types = {"float": np.float32, "float16": np.float16}
    tensors = [ir.tensor(array.astype(types[dtypes[name]]), name=name) for name, array in arrays.items()]
    model = ir.from_onnx_text(text, initializers=tensors)
    del model.graph.inputs[1:]
    return model


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def folded(model: ir.Model, scales: Mapping[Smoothing, np.ndarray]) -> ir.Model:
    """Return the model with the scales in its weights, as builds have it."""
    moved = [
        ChannelScale(group.divided, group.multiplied, partial(np.asarray, scale))
        for group, scale in scales.items()
    ]
    return apply(model, [ScaleChannels(moved)])


@pytest.mark.parametrize(
    "nodes, divided, multiplied",
    [
        (f"{NORM} y = MatMul(a, w)", "n b", "w"),
        ("a = RMSNormalization<axis=-1>(x, n) q = MatMul(a, w) k = MatMul(a, v) y = Add(q, k)", "n", "w v"),
        ("a = MatMul(x, w) y = MatMul(a, v)", "w", "v"),
        ("p = MatMul(x, w) a = Add(p, b) y = MatMul(a, v)", "w b", "v"),
        ("p = MatMul(x, w) a = Add(b, p) r = Relu(a) y = MatMul(r, v)", "w b", "v"),
        ("g = Sigmoid(x) u = MatMul(x, w) a = Mul(g, u) y = MatMul(a, v)", "w", "v"),
    ],
)
def test_groups_end_where_the_floats_result_stays_the_same(nodes: str, divided: str, multiplied: str) -> None:
    shapes = {"w": (12, 12), "v": (12, 12), "n": (12,), "b": (12,)}
    model = graph(nodes, **shapes)
    (group,) = smoothing_groups(model)
    assert (group.divided, group.multiplied) == (tuple(divided.split()), tuple(multiplied.split()))
    x = np.random.default_rng(1).standard_normal((1, 6, 12)).astype(np.float32)
    expected = run(model, x)
    scale = np.geomspace(0.05, 20, 12).astype(np.float32)
    np.testing.assert_allclose(run(folded(model, {group: scale}), x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "nodes, outputs",
    [
        pytest.param(f"{NORM} y = MatMul(a, w)", "y a", id="an output of the stage"),
        pytest.param(f"{NORM} m = MatMul(a, w) y = Add(a, m)", "y", id="a residual reads the norm"),
        pytest.param(f"{NORM} y = MatMul(a, x)", "y", id="no constant weight"),
        pytest.param(f"{NORM} g = Gelu(a) y = MatMul(g, w)", "y", id="Gelu does not scale"),
        pytest.param(f"{NORM} y = MatMul(w, a)", "y", id="the weight is on the left"),
        pytest.param(f"{NORM} m = MatMul(a, w) y = MatMul(m, w)", "y", id="the weight is shared"),
        pytest.param(f"{NORM} m = MatMul(a, w) y = Add(m, b)", "y", id="the norm's bias is shared"),
        pytest.param("m = MatMul(x, w) y = MatMul(m, v)", "y m", id="the layer before is an output"),
        pytest.param("m = MatMul(x, w) a = Add(m, b) y = MatMul(a, v)", "y m", id="a term is an output"),
        pytest.param(
            "m = MatMul(x, w) a = Add(m, b) z = Neg(m) y = MatMul(a, v)", "y z", id="two nodes read a term"
        ),
        pytest.param("m = MatMul(x, w) a = Add(m, x) y = MatMul(a, v)", "y", id="a sum with a variable"),
        pytest.param("a = LayerNormalization<axis=1>(x, n) y = MatMul(a, w)", "y", id="another axis"),
    ],
)
def test_what_else_would_change_is_no_group(nodes: str, outputs: str) -> None:
    shapes = {"w": (12, 12), "v": (12, 12), "n": (12,), "b": (12,)}
    assert smoothing_groups(graph(nodes, outputs, **shapes)) == []


def test_a_weight_behind_a_cast_has_its_own_name() -> None:
    nodes = f"{NORM} c = Cast<to=1>(w) y = MatMul(a, c)"
    (group,) = smoothing_groups(graph(nodes, half="w", w=(12, 8), n=(12,), b=(12,)))
    assert group.multiplied == ("w",)


def test_a_weight_between_two_groups_belongs_to_both() -> None:
    nodes = f"{NORM} u = MatMul(a, w) g = Sigmoid(x) m = Mul(g, u) y = MatMul(m, v)"
    model = graph(nodes, w=(12, 12), v=(12, 12), n=(12,), b=(12,))
    first, second = smoothing_groups(model)
    assert (first.multiplied, second.divided) == (("w",), ("w",))
    x = np.random.default_rng(1).standard_normal((1, 6, 12)).astype(np.float32)
    expected = run(model, x)
    scale = np.geomspace(0.05, 20, 12).astype(np.float32)
    found = run(folded(model, {first: scale, second: scale[::-1].copy()}), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_scale_is_smoothquants_with_mean_one() -> None:
    largest = np.array([1, 100, 4, 1], np.float32)
    weights = [np.full((4, 3), 0.5, np.float32), -np.array([[1, 1, 1, 4]], np.float32).T]
    scale = smoothing_scale(largest, weights, alpha=0.5)
    expected = np.sqrt(largest) / np.sqrt([1, 1, 1, 4])
    np.testing.assert_allclose(scale / scale[0], expected / expected[0], rtol=1e-6)
    assert scale.dtype == np.float32 and abs(np.log(scale).mean()) < 1e-6
    uneven = smoothing_scale(largest, weights, alpha=0.75)
    np.testing.assert_allclose(uneven[1] / uneven[0], 100**0.75, rtol=1e-6)


def test_dead_channels_keep_their_size_and_small_ones_are_bounded() -> None:
    weight = np.ones((5, 3), np.float32)
    weight[1] = 0
    scale = smoothing_scale(np.array([0, 1, 1, 1e-30, 1], np.float32), [weight])
    assert scale[0] == scale[1] == 1
    assert np.isfinite(scale).all() and scale.min() > 1e-3 and scale.max() < 1e3
    assert (smoothing_scale(np.zeros(3, np.float32), [np.ones((3, 2), np.float32)]) == 1).all()


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_large_channel_costs_little_when_it_is_smoothed(dynamic: bool, tmp_path: Path) -> None:
    model = graph(f"{NORM} y = MatMul(a, w)", n=(WIDTH,), w=(WIDTH, WIDTH), b=(WIDTH,))
    gains = np.ones(WIDTH, np.float32)
    gains[5] = 100
    for name, array in (("n", gains), ("b", np.zeros(WIDTH, np.float32))):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    weight = ir.tensor(weight.numpy() / gains[:, None], name="w")  # all channels count alike in the result
    model.graph.initializers["w"].const_value = weight
    x = np.random.default_rng(2).standard_normal((1, 6, WIDTH)).astype(np.float32)
    expected = run(model, x)
    (group,) = smoothing_groups(model)
    statistics = InputStatistics()
    model.graph.name = "sefe"  # by which it is lowered
    observe(model, [{"x": x}], statistics.add, tmp_path)
    scale = smoothing_scale(statistics.channel_largest("w"), [weight.numpy()])

    def error(recipe: StageRecipe) -> float:
        found = run(apply(model.clone(), cpu_pipeline("sefe", "mixed", recipe=recipe)), x)
        return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))

    plain = Form("w8a8", range=statistics.ranges("w", "minmax"), dynamic=dynamic)
    smooth = Form("w8a8", range=statistics.smoothed_range("w", scale), dynamic=dynamic)
    without = error(StageRecipe({"w": plain}))
    tensors = {smoothing_key(group.name): scale}
    assert without > 0.1
    assert error(StageRecipe({"w": smooth}, (group,), tensors)) < 0.1 * without
    assert error(StageRecipe({}, (group,), tensors)) < 1e-6


@pytest.mark.parametrize("stage", ["semantic_encoder", "pixel_encoder", "sefe"])
def test_all_groups_of_a_real_stage_leave_its_result_alone(
    stage: str, nano_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(nano_bundle)
    model = ir.load(bundle.stage_file(stage))
    groups = smoothing_groups(model)
    rng = np.random.default_rng(3)
    tensors = {}
    for group in groups:
        shape = model.graph.initializers[group.multiplied[0]].shape
        assert shape is not None
        tensors[smoothing_key(group.name)] = np.exp(rng.uniform(-2, 2, int(shape[0]))).astype(np.float32)
    expected = outputs(bundle, stage, StageRecipe(), tmp_path / "float")
    found = outputs(bundle, stage, StageRecipe({}, tuple(groups), tensors), tmp_path / "smooth")
    assert len(groups) == {"semantic_encoder": 9, "pixel_encoder": 13, "sefe": 3}[stage]
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5 * np.abs(array).max())


def outputs(bundle: Bundle, stage: str, recipe: StageRecipe, folder: Path) -> dict[str, np.ndarray]:
    """Return what a stage's mixed engine makes of its check vectors."""
    folder.mkdir()
    graph = ir.load(bundle.stage_file(stage))
    save_graph(apply(graph, cpu_pipeline(stage, "mixed", recipe=recipe)), folder / "stage.onnx")
    session = open_session(folder / "stage.onnx")
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, bundle.check_vectors(stage).inputs), strict=True))
