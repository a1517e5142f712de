"""What tests of passes share: graphs written by hand, running them, and comparing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.function_body import FunctionBody
from lira_engine.lowering.passes.sample_by_plugin import PLUGIN
from lira_engine.ort.session import open_session
from lira_export.config import LlmConfig
from lira_export.graphs.functions import deformable_sampling

FLOAT = ir.DataType.FLOAT


class Graph:
    """A graph of x [...] written by hand; `finish` names the output y."""

    def __init__(self, shape: Sequence[int | str], dtype: ir.DataType = FLOAT) -> None:
        self.x = ir.val("x", dtype, shape)
        self.tape = ir.tape.Tape()

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        return self.tape.initializer(ir.tensor(array, name=name))

    def op(
        self,
        op_type: str,
        *inputs: ir.Value,
        shape: Sequence[int | str] | None = None,
        dtype: ir.DataType = FLOAT,
        domain: str = "",
        **attributes: object,
    ) -> ir.Value:
        value = self.tape.op(op_type, inputs, attributes, domain=domain)
        value.name = f"{op_type}.{len(self.tape.nodes)}"
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape) if shape is not None else None
        value.producer().name = value.name  # type: ignore[union-attr]
        return value

    def finish(self, y: ir.Value, opset: int = 24) -> ir.Model:
        y.name = "y"
        graph = ir.Graph(
            [self.x],
            [y],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": opset},
            name="g",
        )
        return ir.Model(graph, ir_version=11 if opset > 21 else 10)


@pytest.fixture(scope="session")
def new_graph() -> type[Graph]:
    """new_graph(shape): a `Graph`, to write."""
    return Graph


Run = Callable[[ir.Model, dict[str, np.ndarray]], list[np.ndarray]]


def _run_in(folder: Path) -> Run:
    def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        path = folder / "g.onnx"
        ir.save(model, path, external_data="g.data", size_threshold_bytes=1024)
        return open_session(path, threads=1).run(None, feeds)

    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(model, feeds): the outputs of ONNX Runtime."""
    return _run_in(tmp_path)


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """session(model, feeds): the same, for fixtures of several tests."""
    return _run_in(tmp_path_factory.mktemp("session"))


@pytest.fixture(scope="session")
def counts() -> Callable[[ir.Model], Counter[str]]:
    """counts(model): how many nodes of each operator the main graph has."""
    return lambda model: Counter(node.op_type for node in model.graph)


@pytest.fixture(scope="session")
def matrix() -> Callable[[int, int], np.ndarray]:
    """matrix(rows, columns): random numbers whose columns have about norm 1, the same each time."""

    def matrix(rows: int, columns: int) -> np.ndarray:
        random = np.random.default_rng(rows + columns)
        return (random.normal(size=(rows, columns)) / rows**0.5).astype(np.float32)

    return matrix


@pytest.fixture(scope="session")
def values() -> Callable[[ir.Model, str], np.ndarray]:
    """values(model, name): an initializer in float32."""

    def values(model: ir.Model, name: str) -> np.ndarray:
        stored = model.graph.initializers[name].const_value
        assert stored is not None
        return np.asarray(stored.numpy()).astype(np.float32)

    return values


@pytest.fixture(scope="session")
def assert_unchanged() -> Callable[[ir.passes.PassBase, ir.Model], None]:
    """assert_unchanged(pass, model): the pass reports no change, and the model is the same, byte for byte."""

    def assert_unchanged(one: ir.passes.PassBase, model: ir.Model) -> None:
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        assert not one(model).modified
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before

    return assert_unchanged


@pytest.fixture(scope="session")
def small_llm(random_llm: Callable[[LlmConfig, int], ir.Model]) -> Callable[..., ir.Model]:
    """small_llm(head_size=16): a portable language model of two layers, 6 heads and 3 KV heads."""

    def small_llm(head_size: int = 16) -> ir.Model:
        config = LlmConfig(
            vocab_size=29,
            hidden_size=6 * head_size,
            intermediate_size=40,
            num_layers=2,
            num_heads=6,
            num_kv_heads=3,
            rope_theta=1e4,
            rms_norm_eps=1e-5,
        )
        return random_llm(config, 32)

    return small_llm


class Sampling:
    """One call of `lira.DeformableSampling`; samples are inside, at edges, half outside and far outside."""

    levels = ((3, 5), (6, 4))
    heads, head_size, queries, points = 2, 4, 7, 3

    def model(self) -> ir.Model:
        pixels = sum(h * w for h, w in self.levels)
        shape = [1, self.queries, self.heads, len(self.levels), self.points]
        value = ir.val("value", FLOAT, [1, pixels, self.heads, self.head_size])
        locations, weights = ir.val("locations", FLOAT, [*shape, 2]), ir.val("weights", FLOAT, shape)
        call = ir.node(
            "DeformableSampling",
            [value, locations, weights],
            {"level_shapes": [side for level in self.levels for side in level]},
            domain="lira",
            name="call",
        )
        y = call.outputs[0]
        y.name, y.type = "y", ir.TensorType(FLOAT)
        y.shape = ir.Shape([1, self.queries, self.heads * self.head_size])
        opsets = {"": 24, "lira": 1}
        graph = ir.Graph([value, locations, weights], [y], nodes=[call], opset_imports=opsets, name="g")
        body = deformable_sampling(self.levels, self.heads, self.head_size, self.points)
        call.overload = body.overload
        return ir.Model(graph, ir_version=11, functions=[body])

    def feeds(self) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)
        shape = (1, self.queries, self.heads, len(self.levels), self.points)
        locations = random.uniform(-0.3, 1.3, (*shape, 2)).astype(np.float32)
        locations[0, :4] = np.array([0, 1, 50, -50])[:, None, None, None, None]
        pixels = sum(h * w for h, w in self.levels)
        return {
            "value": random.normal(size=(1, pixels, self.heads, self.head_size)).astype(np.float32),
            "locations": locations,
            "weights": random.uniform(size=shape).astype(np.float32),
        }


@pytest.fixture(scope="session")
def sampling() -> Sampling:
    return Sampling()


@pytest.fixture(scope="session")
def define_plugin() -> Callable[[ir.Model, int], ir.Model]:
    """define_plugin(model, levels): the model with a function in the place of NVIDIA's plugin."""

    def define_plugin(model: ir.Model, levels: int) -> ir.Model:
        definition = _plugin(levels, model.opset_imports[""])
        model.functions[definition.identifier()] = definition
        return model

    return define_plugin


def _plugin(levels: int, opset: int) -> ir.Function:
    """Return what the plugin does by NVIDIA's README, in standard operators.

    value [N,S,M,D] holds the maps one after the other, spatial_shapes [L,2] their heights and widths,
    level_start_index [L] where each begins; sampling_locations [N,Lq,M,L,P,2] and attention_weights
    [N,Lq,M,L,P] are summed to [N,Lq,M,D].
    """
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


class MatMulCase:
    """x [1,S,160] times a constant weight [160,130]."""

    dtypes = MappingProxyType({"fp32": FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16})
    inputs, outputs, rows = 160, 130, 9

    def stored(self, dtype: str = "fp32") -> np.ndarray:
        """Return the weight as the graph stores it."""
        random = np.random.default_rng(0)
        weight = random.normal(size=(self.inputs, self.outputs)).astype(np.float32) / 12
        return weight.astype(self.dtypes[dtype].numpy())

    def weight(self, dtype: str = "fp32") -> np.ndarray:
        """Return the weight as the graph reads it, float32."""
        return self.stored(dtype).astype(np.float32)

    def x(self) -> np.ndarray:
        return np.random.default_rng(1).normal(size=(1, self.rows, self.inputs)).astype(np.float32)

    def model(self, dtype: str = "fp32") -> ir.Model:
        g = Graph([1, "S", self.inputs])
        right = g.weight("w", self.stored(dtype))
        if dtype != "fp32":
            right = g.op("Cast", right, to=FLOAT, shape=[self.inputs, self.outputs])
        return g.finish(g.op("MatMul", g.x, right, shape=[1, "S", self.outputs]), opset=21)


@pytest.fixture(scope="session")
def case() -> MatMulCase:
    return MatMulCase()
