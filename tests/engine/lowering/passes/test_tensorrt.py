"""What TensorRT is given, run by ONNX Runtime: each pass, and whole stages in every dialect and precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine import Bundle, LiraError
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.accuracy import check_outputs, relative_error, rms_error
from lira_engine.engines.llm_tensors import is_cache
from lira_engine.lowering.passes.decompose_operators import DecomposeOperators
from lira_engine.lowering.passes.quantize_operands import FORMATS, QuantizeOperands
from lira_engine.lowering.passes.quantize_weights import QuantizeWeights, nearest_scales
from lira_engine.lowering.passes.split_lm_head import SplitLmHead
from lira_engine.lowering.passes.use_mixed_precision import KEPT, LONGEST_SUM, UseMixedPrecision
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline
from lira_engine.ort.session import open_session

pytestmark = pytest.mark.portable
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
RANDOM = np.random.default_rng(0)


def run(model: ir.Model, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    path = folder / "g.onnx"
    ir.save(model, path, external_data="g.data", size_threshold_bytes=1024)
    return open_session(path, threads=1).run(None, feeds)


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def values(model: ir.Model, initializer: str) -> np.ndarray:
    stored = model.graph.initializers[initializer].const_value
    assert stored is not None
    return np.asarray(stored.numpy()).astype(np.float32)


class Graph:
    """A graph of x [...] written by hand; `finish` names the output y."""

    def __init__(self, shape: Sequence[int | str]) -> None:
        self.x = ir.val("x", FLOAT, shape)
        self.tape = ir.tape.Tape()

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        return self.tape.initializer(ir.tensor(array, name=name))

    def op(
        self, op_type: str, *inputs: ir.Value, shape: Sequence[int | str] | None = None, **attrs: object
    ) -> ir.Value:
        value = self.tape.op(op_type, inputs, attrs)
        value.name = f"{op_type}.{len(self.tape.nodes)}"
        value.type = ir.TensorType(FLOAT)
        value.shape = ir.Shape(shape) if shape is not None else None
        value.producer().name = value.name  # type: ignore[union-attr]
        return value

    def finish(self, y: ir.Value) -> ir.Model:
        y.name = "y"
        graph = ir.Graph(
            [self.x],
            [y],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": 24},
            name="g",
        )
        return ir.Model(graph, ir_version=11)


def matrix(rows: int, columns: int) -> np.ndarray:
    """The same one each time."""
    random = np.random.default_rng(rows + columns)
    return (random.normal(size=(rows, columns)) / rows**0.5).astype(np.float32)


def two_products() -> ir.Model:
    """x [2,64] -> product, transposed, product with an activation between it and the output."""
    g = Graph([2, 64])
    first = g.op("MatMul", g.x, g.weight("first", matrix(64, 32)), shape=[2, 32])
    turned = g.op("Transpose", first, shape=[32, 2], perm=[1, 0])
    second = g.op("MatMul", turned, g.weight("second", matrix(2, 16)), shape=[32, 16])
    return g.finish(g.op("Sigmoid", second, shape=[32, 16]))


def test_products_are_half_and_what_only_moves_numbers_stays_half(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(2, 64)).astype(np.float32)
    expected = run(two_products(), {"x": x}, tmp_path)[0]
    model = apply(two_products(), [UseMixedPrecision(), common.RemoveUnusedNodesPass()])
    assert [node.op_type for node in model.graph] == [
        *("Cast", "MatMul", "Transpose", "MatMul", "Cast", "Sigmoid"),
    ]
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert all(value.dtype == HALF for node in products for value in (*node.inputs, *node.outputs))
    assert (model.graph.inputs[0].dtype, model.graph.outputs[0].dtype) == (FLOAT, FLOAT)
    assert 0 < relative_error(run(model, {"x": x}, tmp_path)[0], expected) < 2e-3


@pytest.mark.parametrize("beyond", [1e5, -1e5])
def test_a_weight_beyond_fp16_keeps_its_product_in_fp32_and_is_named(beyond: float, tmp_path: Path) -> None:
    g = Graph([2, 8])
    large = matrix(8, 8)
    large[3, 4] = beyond
    model = apply(
        g.finish(g.op("MatMul", g.x, g.weight("large", large), shape=[2, 8])), [UseMixedPrecision()]
    )
    assert model.metadata_props[KEPT] == "large"
    x = RANDOM.normal(size=(2, 8)).astype(np.float32)
    assert relative_error(run(model, {"x": x}, tmp_path)[0], x @ large) < 1e-6


def test_a_long_sum_stays_in_fp32(tmp_path: Path) -> None:
    """Ones over a mask of many pixels: the sum itself is beyond fp16."""
    g = Graph([1, 70000])
    ones = np.ones((70000, 2), np.float32)
    model = apply(g.finish(g.op("MatMul", g.x, g.weight("ones", ones), shape=[1, 2])), [UseMixedPrecision()])
    assert dtypes_of_product(model) == {FLOAT}  # ONNX Runtime would sum products in half in fp32
    assert run(model, {"x": np.ones((1, 70000), np.float32)}, tmp_path)[0].tolist() == [[70000, 70000]]


@pytest.mark.parametrize("terms, dtype", [(LONGEST_SUM, HALF), (LONGEST_SUM + 1, FLOAT)])
def test_the_longest_sum_in_half(terms: int, dtype: ir.DataType) -> None:
    g = Graph([1, terms])
    w = g.weight("w", np.ones((terms, 2), np.float32))
    model = apply(g.finish(g.op("MatMul", g.x, w, shape=[1, 2])), [UseMixedPrecision()])
    assert dtypes_of_product(model) == {dtype}


def dtypes_of_product(model: ir.Model) -> set[ir.DataType | None]:
    product = next(node for node in model.graph if node.op_type == "MatMul")
    return {value.dtype for value in product.inputs if value is not None}


def test_an_fp16_output_is_widened_under_its_name_unless_it_is_wanted_in_half(tmp_path: Path) -> None:
    for wanted in (False, True):
        g = Graph([2, 8])
        product = g.op("MatMul", g.x, g.weight("w", matrix(8, 4)), shape=[2, 4])
        model = apply(
            g.finish(product), [UseMixedPrecision(lambda name, wanted=wanted: wanted and name == "y")]
        )
        found = open_outputs(model, tmp_path)
        assert found == {"y": "tensor(float16)" if wanted else "tensor(float)"}


def open_outputs(model: ir.Model, folder: Path) -> dict[str, str]:
    ir.save(model, folder / "o.onnx")
    return {tensor.name: tensor.type for tensor in open_session(folder / "o.onnx").get_outputs()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_int4_weights_are_what_their_integers_and_scales_say(dtype: str, tmp_path: Path) -> None:
    w = matrix(256, 24).astype(dtype)
    g = Graph([3, 256])
    right = g.weight("w", w)
    if dtype == "float16":
        right = g.op("Cast", right, to=FLOAT)
    passes = [QuantizeWeights(lambda name, inputs: 64), common.RemoveUnusedNodesPass()]
    model = apply(g.finish(g.op("MatMul", g.x, right, shape=[3, 24])), passes)
    x = RANDOM.normal(size=(3, 256)).astype(np.float32)
    single = w.astype(np.float32)
    scales = nearest_scales("w", single, 64).astype(np.float16).astype(np.float32).repeat(64, axis=0)
    integers = np.rint(single / scales)
    assert np.abs(integers).max() == 7
    rounded = (integers * scales).astype(np.float16).astype(np.float32)
    assert relative_error(run(model, {"x": x}, tmp_path)[0], x @ rounded) < 1e-6
    kinds = {value.name: value.dtype for value in model.graph.initializers.values() if value.uses()}
    assert kinds == {"w.int4": ir.DataType.INT4, "w.scales": HALF}


@pytest.mark.parametrize("is_output", [True, False])
def test_an_odd_number_of_int4_columns_is_filled_up(is_output: bool, tmp_path: Path) -> None:
    """Two of them share a byte."""

    def build(columns: int) -> ir.Model:
        g = Graph([3, 64])
        out = g.op("MatMul", g.x, g.weight("w", w[:, :columns]), shape=[3, columns])
        return g.finish(out if is_output else g.op("Neg", out, shape=[3, columns]))

    w, x = matrix(64, 8), RANDOM.normal(size=(3, 64)).astype(np.float32)
    even, odd = (apply(build(n), [QuantizeWeights(lambda name, inputs: 32)]) for n in (8, 7))
    packed = odd.graph.initializers["w.int4"]
    assert list(packed.shape or ()) == [64, 8] and counts(odd)["Slice"] == 1 and not counts(even)["Slice"]
    assert (values(odd, "w.scales") > 0).all()  # of the column that was added, too: TensorRT wants it
    onnx.checker.check_model(ir.to_proto(odd), full_check=True)
    found = run(odd, {"x": x}, tmp_path)[0]
    assert found.shape == (3, 7)
    np.testing.assert_allclose(found, run(even, {"x": x}, tmp_path)[0][:, :7], rtol=1e-6)


def test_a_block_of_zeros_has_a_scale() -> None:
    g = Graph([1, 64])
    w = matrix(64, 2)
    w[32:] = 0
    passes = [QuantizeWeights(lambda name, inputs: 32)]
    model = apply(g.finish(g.op("MatMul", g.x, g.weight("w", w), shape=[1, 2])), passes)
    assert (values(model, "w.scales") > 0).all() and not values(model, "w.int4")[32:].any()


@pytest.mark.parametrize("number, scale, integer", [(0.5, 0.25, 2), (0.5, 0.05, 7), (-0.5, 0.05, -7)])
def test_a_recipe_brings_its_own_scales(number: float, scale: float, integer: int) -> None:
    """Also such that a weight is beyond them: -8 is left out."""
    g = Graph([1, 32])
    w = np.full((32, 2), number, np.float32)
    scales = lambda name, weight, block: np.full((1, 2), scale, np.float32)  # noqa: E731
    passes = [QuantizeWeights(lambda name, inputs: 32, scales)]
    model = apply(g.finish(g.op("MatMul", g.x, g.weight("w", w), shape=[1, 2])), passes)
    assert (values(model, "w.int4") == integer).all()


def test_a_block_that_does_not_divide_a_weight_is_refused() -> None:
    g = Graph([1, 48])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(48, 2)), shape=[1, 2]))
    with pytest.raises(ir.passes.PreconditionError, match="multiple of the block 32"):
        apply(model, [QuantizeWeights(lambda name, inputs: 32)])


@pytest.mark.parametrize("kind, limit", [("int8", 0.02), ("fp8", 0.06)])
def test_operands_in_eight_bits(kind: str, limit: float, tmp_path: Path) -> None:
    """A product comes out near its value, between Q/DQ alone, and values beyond the range are cut off."""
    w, x = matrix(64, 24), RANDOM.normal(size=(3, 64)).astype(np.float32)
    g = Graph([3, 64])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", w), shape=[3, 24]))
    largest = float(np.abs(x).max())
    ranges = lambda name: largest if name == "w" else None  # noqa: E731
    passes = [QuantizeOperands(kind, ranges), UseMixedPrecision(), common.RemoveUnusedNodesPass()]
    model = apply(model, passes)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert [value.producer().op_type for value in product.inputs] == ["DequantizeLinear"] * 2  # type: ignore[union-attr]
    assert model.graph.initializers["w.q8"].dtype == FORMATS[kind].dtype
    assert 1e-3 < rms_error(run(model, {"x": x}, tmp_path)[0], x @ w) < limit
    assert rms_error(run(model, {"x": 8 * x}, tmp_path)[0], 8 * x @ w) > 0.3


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_column_of_zeros_in_eight_bits(kind: str, tmp_path: Path) -> None:
    w = matrix(16, 4)
    w[:, 1] = 0
    g = Graph([3, 16])
    product = g.op("MatMul", g.x, g.weight("w", w), shape=[3, 4])
    model = apply(g.finish(product), [QuantizeOperands(kind, lambda name: 4.0)])
    assert (values(model, "w.scales") > 0).all()
    found = run(model, {"x": np.ones((3, 16), np.float32)}, tmp_path)[0]
    assert np.isfinite(found).all() and not found[:, 1].any()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lm_head_in_parts_gives_the_same_logits(dtype: str, tmp_path: Path) -> None:
    head = matrix(16, 29).astype(dtype)
    g = Graph([1, 3, 16])
    right = g.weight("lm_head", head)
    if dtype == "float16":
        right = g.op("Cast", right, to=FLOAT)
    passes = [SplitLmHead(4), common.RemoveUnusedNodesPass()]
    model = apply(g.finish(g.op("MatMul", g.x, right, shape=[1, 3, 29])), passes)
    x = RANDOM.normal(size=(1, 3, 16)).astype(np.float32)
    assert counts(model)["MatMul"] == 4
    assert max(value.shape[1] for value in model.graph.initializers.values()) == 8  # type: ignore[index, type-var]
    assert relative_error(run(model, {"x": x}, tmp_path)[0], x @ head.astype(np.float32)) < 1e-6


@pytest.mark.parametrize("masked", [False, True])
def test_attention_gelu_and_norms_decomposed(masked: bool, tmp_path: Path) -> None:
    def build() -> ir.Model:
        g = Graph([1, 2, 5, 8])
        inputs = [g.x, g.op("Gelu", g.x, shape=[1, 2, 5, 8]), g.x]
        if masked:
            inputs.append(g.weight("mask", np.tri(5, dtype=bool)))
        y = g.op("Attention", *inputs, shape=[1, 2, 5, 8])
        channels = [g.weight(name, matrix(1, 2)[0] + 1) for name in ("by", "more")]
        y = g.op("GroupNormalization", y, *channels, shape=[1, 2, 5, 8], num_groups=1, epsilon=1e-5)
        scale = g.weight("scale", matrix(1, 8)[0])
        return g.finish(g.op("RMSNormalization", y, scale, shape=[1, 2, 5, 8], axis=-1, epsilon=1e-5))

    x = RANDOM.normal(size=(1, 2, 5, 8)).astype(np.float32)
    model = DecomposeOperators()(build()).model
    assert not {"Attention", "Gelu", "GroupNormalization", "RMSNormalization"} & set(counts(model))
    assert relative_error(run(model, {"x": x}, tmp_path)[0], run(build(), {"x": x}, tmp_path)[0]) < 1e-5


def test_attention_without_a_fused_kernel_is_decomposed() -> None:
    """By heads and their columns; in fp32 there is none at all, and none in the stages that see."""
    for heads, columns, stage, precision, stays in (
        (8, 16, "llm", "fp16", True),
        (8, 8, "llm", "fp16", False),
        (8, 20, "llm", "fp16", False),
        (2, 64, "llm", "fp16", False),
        (8, 64, "llm", "fp32", False),
        (16, 64, "semantic_encoder", "fp16", False),
    ):
        g = Graph([1, heads, 5, columns])
        model = g.finish(g.op("Attention", g.x, g.x, g.x, shape=[1, heads, 5, columns]))
        found = counts(apply(model, tensorrt_pipeline(stage, precision, "cache_update")))
        assert bool(found["Attention"]) == stays and bool(found["Softmax"]) != stays


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_cache_is_updated_where_it_is_without_fused_attention_too(
    nano_bundle: Path, precision: str
) -> None:
    bundle = Bundle.open(nano_bundle)
    passes = tensorrt_pipeline("llm", precision, "cache_update")
    found = counts(apply(ir.load(bundle.stage_file("llm")), passes))
    layers = bundle.manifest.model.num_layers
    assert found["TensorScatter"] == 2 * layers and not found["ScatterElements"]
    assert found["Attention"] == (layers if precision == "fp16" else 0)


@pytest.mark.parametrize("parts", [1, 2])
def test_an_lm_head_of_16_bits_has_no_part_in_int4(nano_bundle: Path, parts: int) -> None:
    passes = tensorrt_pipeline("llm", "int4", "cache_update", block=32, lm_head_bits=16, lm_head_parts=parts)
    weights = apply(ir.load(Bundle.open(nano_bundle).stage_file("llm")), passes).graph.initializers
    in_int4 = [name for name, value in weights.items() if value.dtype == ir.DataType.INT4]
    assert in_int4 and not any(name.startswith("lm_head") for name in in_int4)
    heads = [value for name, value in weights.items() if name.startswith("lm_head")]
    assert [value.dtype for value in heads] == [HALF] * parts


CASES = [
    (stage, precision, dialect)
    for dialect in ("cache_update", "decomposed")
    for precision in ("fp32", "fp16", "int4")
    for stage in STAGES
    if stage == "llm" or precision != "int4"
]


@pytest.mark.parametrize("stage, precision, dialect", CASES)
def test_lowered_stages_of_lira_nano_answer_as_recorded(
    nano_bundle: Path, stage: str, precision: str, dialect: str, tmp_path: Path
) -> None:
    bundle = Bundle.open(nano_bundle)
    passes = tensorrt_pipeline(stage, precision, dialect, block=32, lm_head_parts=2)
    model = apply(ir.load(bundle.stage_file(stage)), passes)
    assert {node.domain for node in model.graph} == {""} and not model.functions
    used = set(counts(model))
    assert "GridSample" not in used
    if dialect == "decomposed":
        assert not used & {
            "TensorScatter",
            "Attention",
            "RotaryEmbedding",
            "RMSNormalization",
            "Gelu",
            "CastLike",
        }
        assert model.opset_imports[""] <= 21
    vectors = bundle.check_vectors(stage)
    feeds = dict(vectors.inputs)
    for value in model.graph.inputs:  # check vectors leave an empty cache out
        name = value.name or ""
        if is_cache(name):
            sizes = [int(size) for size in value.shape]  # type: ignore[union-attr, arg-type]
            feeds.setdefault(name, np.zeros(sizes, np.float32))
    if precision != "fp32":
        feeds = {name: x.astype(np.float16) if is_cache(name) else x for name, x in feeds.items()}
        assert all((value.dtype == HALF) == is_cache(value.name or "") for value in model.graph.inputs)
        assert all((value.dtype == HALF) == is_cache(value.name or "") for value in model.graph.outputs)
    names = [value.name for value in model.graph.outputs]
    found = dict(zip(names, run(model, feeds, tmp_path), strict=True))
    expected = {name: array for name, array in vectors.outputs.items() if not is_cache(name)}
    assert expected
    if precision == "fp32":
        check_outputs(stage, "fp32", found, expected, vectors.noise)
    else:
        limit = {"fp16": 0.02, "int4": 0.6}[precision]
        for name, array in expected.items():
            if np.issubdtype(array.dtype, np.floating):
                assert rms_error(found[name], array) < limit, name


def test_what_there_is_no_lowering_for_is_said() -> None:
    with pytest.raises(LiraError, match="nothing lowers sefe int4 for TensorRT: expected one of"):
        tensorrt_pipeline("sefe", "int4", "cache_update")
    with pytest.raises(LiraError, match="fp8 needs the ranges of the matmuls' inputs"):
        tensorrt_pipeline("llm", "fp8", "cache_update")
