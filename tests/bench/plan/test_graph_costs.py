"""Costs of small graphs, compared with numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_bench.plan import activations, polynomial
from lira_bench.plan.graph_costs import Matrix, count_graph, load, sizes
from lira_engine.errors import LiraError


class Writer:
    """Builds a graph node by node, with the shape of every value."""

    def __init__(self) -> None:
        self.tape = ir.tape.Tape()
        self.inputs: list[ir.Value] = []

    def input(self, name: str, *shape: int | str, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        value = ir.val(name, dtype=dtype, shape=shape)
        self.inputs.append(value)
        return value

    def weight(self, name: str, *shape: int) -> ir.Value:
        return self.tape.initializer(ir.tensor(np.zeros(shape, np.float32), name=name))

    def op(
        self, op_type: str, inputs: list[ir.Value], *shape: int | str, domain: str = "", **attributes: Any
    ) -> ir.Value:
        count = sum(node.op_type == op_type for node in self.tape.nodes)
        value = ir.val(f"{op_type}{count}", dtype=ir.DataType.FLOAT, shape=shape)
        return self.tape.op(op_type, inputs, attributes, domain=domain, output=value, name=value.name)

    def graph(self, *outputs: ir.Value) -> ir.Graph:
        return ir.Graph(
            self.inputs,
            outputs,
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": 24, "lira": 1},
        )

    def costs(self, *outputs: ir.Value) -> Any:
        return count_graph(ir.Model(self.graph(*outputs), ir_version=11))


@pytest.fixture
def writer() -> Writer:
    return Writer()


def test_a_linear_layer_counts_by_rows(writer: Writer) -> None:
    x = writer.input("x", "T", 5, 128)
    y = writer.op("MatMul", [x, writer.weight("w", 128, 256)], "T", 5, 256)
    y = writer.op("Add", [y, writer.weight("b", 256)], "T", 5, 256)
    costs = writer.costs(y)
    assert costs.matrices == (Matrix(128, 256, 1),)
    assert costs.other_parameters == 256
    assert costs.operations == {"linear": {"T": 2 * 5 * 128 * 256}}
    assert costs.flops({"T": 3}) == {"linear": 3 * 327_680}
    assert costs.moved == {"T": 4 * (5 * 128 + 5 * 256)}
    assert costs.unfused == {"T": 4 * (5 * 256 + 5 * 256)}  # Add: in and out, its constant is no activation
    assert costs.products == 1


def test_small_matrices_do_not_count_as_linear_layers(writer: Writer) -> None:
    x = writer.input("x", 1, 7, 64)
    costs = writer.costs(writer.op("MatMul", [x, writer.weight("w", 64, 300)], 1, 7, 300))
    assert costs.operations == {"dense": {"1": 2 * 7 * 64 * 300}}
    assert costs.matrices == (Matrix(64, 300, 1),)


def test_a_shared_weight_is_one_matrix_of_two_matmuls(writer: Writer) -> None:
    x, w = writer.input("x", 1, 4, 128), writer.weight("w", 128, 128)
    y = writer.op("MatMul", [writer.op("MatMul", [x, w], 1, 4, 128), w], 1, 4, 128)
    costs = writer.costs(y)
    assert costs.parameters == 128 * 128
    assert costs.operations == {"linear": {"1": 2 * 2 * 4 * 128 * 128}}


def test_a_16_bit_weight_counts_behind_its_cast(writer: Writer) -> None:
    x = writer.input("x", 1, 2, 128)
    half = writer.tape.initializer(ir.tensor(np.zeros((128, 160), np.float16), name="w"))
    w = writer.op("Cast", [half], 128, 160, to=ir.DataType.FLOAT)
    costs = writer.costs(writer.op("MatMul", [x, w], 1, 2, 160))
    assert costs.matrices == (Matrix(128, 160, 1),)
    assert costs.unfused == {}, "a cast of a constant is done once, not in every run"
    assert costs.peak_bytes({}) == 2 * 160 * 4


def test_matmuls_of_activations_are_dense(writer: Writer) -> None:
    a, b = writer.input("a", 1, "S", 24), writer.input("b", 1, 24, "K")
    costs = writer.costs(writer.op("MatMul", [a, b], 1, "S", "K"))
    assert costs.operations == {"dense": {"K*S": 2 * 24}}


def test_gemm_counts_with_transposed_inputs(writer: Writer) -> None:
    a, w = writer.input("a", 10, 3), writer.weight("w", 7, 10)
    costs = writer.costs(writer.op("Gemm", [a, w], 3, 7, transA=1, transB=1))
    assert costs.operations == {"dense": {"1": 2 * 3 * 7 * 10}}


def test_convolutions_count_by_their_kernels(writer: Writer) -> None:
    x = writer.input("x", 1, 8, 6, 6)
    grouped = writer.op("Conv", [x, writer.weight("depthwise", 8, 1, 7, 7)], 1, 8, 6, 6, group=8)
    assert writer.costs(grouped).operations == {"conv": {"1": 2 * 8 * 36 * 49}}
    up = Writer()
    x = up.input("x", 1, 8, 6, 6)
    y = up.op("ConvTranspose", [x, up.weight("w", 8, 5, 2, 2)], 1, 5, 12, 12)
    assert up.costs(y).operations == {"conv": {"1": 2 * 8 * 36 * 5 * 4}}


def test_masked_attention_keeps_its_scores(writer: Writer) -> None:
    query = writer.input("q", 1, 4, 10, 16)
    key, value = writer.input("k", 1, 4, 20, 16), writer.input("v", 1, 4, 20, 32)
    mask = writer.input("m", 1, 1, 10, 20, dtype=ir.DataType.BOOL)
    y = writer.op("Attention", [query, key, value, mask], 1, 4, 10, 32)
    costs = writer.costs(y)
    assert costs.operations == {"attention": {"1": 2 * 4 * 10 * 20 * (16 + 32)}}
    assert costs.peak_bytes({}) == 4 * (4 * 10 * 32 + 4 * 10 * 20)


def test_cached_attention_grows_with_the_context(writer: Writer) -> None:
    query = writer.input("query", 1, "S", 8 * 16)
    key, value = (writer.input(name, 1, "S", 2 * 16) for name in ("key", "value"))
    caches = [writer.input(f"{name}_cache.0", 1, 2, 64, 16) for name in ("key", "value")]
    rest = [writer.input(name, 1, dtype=ir.DataType.INT64) for name in ("position", "positions")]
    tables = [writer.weight(name, 64, 8) for name in ("cos", "sin")]
    outputs = [ir.val("attention", dtype=ir.DataType.FLOAT, shape=[1, "S", 128])]
    outputs += [
        ir.val(f"{name}_out", dtype=ir.DataType.FLOAT, shape=[1, 2, 64, 16]) for name in ("key", "value")
    ]
    inputs = [query, key, value, *caches, *rest, *tables]
    writer.tape.op_multi_out("CachedAttention", inputs, {}, outputs=outputs, domain="lira")
    costs = writer.costs(*outputs)
    # A row: 128 multiply-adds with every row that it attends to, and the same for the values.
    assert costs.operations == {"attention": {"S*context": 2 * 2 * 128}}
    # Row 0 sees one row, row 1 two, row 2 three: two in the mean.
    assert costs.flops({"S": 3, "context": 2})["attention"] == 2 * 2 * 128 * (1 + 2 + 3)
    assert costs.moved == {"S": 4 * (128 + 32 + 32 + 128)}, "the cache is counted apart"
    assert costs.peak == ({"S": 4 * 128},), "caches are updated in place"


def test_sampling_at_points_counts_four_neighbours(writer: Writer) -> None:
    x, grid = writer.input("x", 1, 8, 6, 6), writer.input("grid", 1, 5, 4, 2)
    costs = writer.costs(writer.op("GridSample", [x, grid], 1, 8, 5, 4))
    assert costs.operations == {"sampling": {"1": 2 * 4 * 8 * 5 * 4}}


def test_deformable_sampling_counts_per_sample_and_channel(writer: Writer) -> None:
    value = writer.input("value", 1, 20, 2, 8)
    locations = writer.input("locations", 1, 5, 2, 3, 4, 2)
    weights = writer.input("weights", 1, 5, 2, 3, 4)
    y = writer.op("DeformableSampling", [value, locations, weights], 1, 5, 16, domain="lira")
    costs = writer.costs(y)
    assert costs.operations == {"sampling": {"1": 10 * 5 * 2 * 3 * 4 * 8}}
    assert costs.peak_bytes({}) == 4 * 5 * 16 + 2 * 4 * (5 * 2 * 4 * 8)


def test_unknown_operators_are_refused(writer: Writer) -> None:
    x = writer.input("x", 4, 4)
    with pytest.raises(LiraError, match="what Einsum costs is not known; expected Attention, Conv"):
        writer.costs(writer.op("Einsum", [x, x], 4, 4, equation="ij,jk->ik"))


def test_graphs_without_shapes_are_refused(writer: Writer) -> None:
    y = writer.op("Relu", [writer.input("x", 4)])
    y.shape = None
    with pytest.raises(LiraError, match="does not say the shape of Relu0"):
        writer.costs(y)


def test_the_peak_sums_values_that_live_together(writer: Writer) -> None:
    x = writer.input("x", 100)
    a = writer.op("Concat", [x, x, x], 300)  # 1200 bytes
    flat = writer.op("Reshape", [a, a], 3, 100)  # the same memory
    b = writer.op("Transpose", [flat], 100, 3)  # 1200 more, a is read once more
    c = writer.op("Relu", [b], 100, 3)  # over b
    d = writer.op("Slice", [flat], 10)  # 40 more; then a is free
    e = writer.op("Concat", [c, d], 310)  # 1240 more
    assert activations.peak(writer.graph(e)) == [{"1": 1200 + 40 + 1240}]


def test_the_peak_depends_on_the_dimensions(writer: Writer) -> None:
    x = writer.input("x", "S", 10)
    a = writer.op("Transpose", [x], 10, "S")  # 40 S
    b = writer.op("Slice", [a], 1000)  # 4000 more
    c = writer.op("Gather", [b, b], "K")  # 4 K more, a is free
    found = activations.peak(writer.graph(c))
    assert sorted(found, key=str) == [{"1": 4000, "K": 4}, {"S": 40, "1": 4000}]


def test_polynomials_add_and_evaluate() -> None:
    shape = polynomial.of(["S", 3, "K", 2], 5)
    assert shape == {"K*S": 30}
    total = polynomial.plus(shape, {"1": 4}, {"K*S": -30})
    assert total == {"1": 4}
    assert polynomial.value({"K*S": 30, "1": 4}, {"K": 2, "S": 0.5}) == 34
    assert polynomial.largest([{"S": 1}, {"S": 2}, {"K": 1}, {"S": 2, "K": 1}]) == [{"S": 2, "K": 1}]
    with pytest.raises(LiraError, match="depends on S; expected some of K"):
        polynomial.value({"S": 1}, {"K": 2})


@pytest.mark.parametrize("size", sizes())
def test_shipped_language_models_match_their_formula(size: str) -> None:
    """The sizes in the manifest give the matmuls of every layer."""
    costs = load(size)
    m, stage = costs.model, costs.stages["llm"]
    width, kv_width = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    into = m.hidden_size * (width + 2 * kv_width)  # q, k, v
    behind = width * m.hidden_size + 3 * m.hidden_size * m.intermediate_size  # o, gate, up, down
    head = m.hidden_size * m.vocab_size
    assert stage.operations == {
        "attention": {"S*context": 4 * width * m.num_layers},
        # What follows the last layer's attention runs at the asked rows only.
        "linear": {"S": 2 * (m.num_layers * into + (m.num_layers - 1) * behind), "K": 2 * (behind + head)},
    }
    assert (
        sum(x.inputs * x.outputs * x.count for x in stage.matrices) == m.num_layers * (into + behind) + head
    )
    assert costs.kv_elements() == 2 * m.num_layers * kv_width
    assert costs.region_rows > m.tokens_per_tile + 1
