"""The lowered graphs against the operator tables of TensorRT's ONNX parser.

Facts from docs/operators.md of github.com/onnx/onnx-tensorrt:

- `decomposed`, for TensorRT 10.3 (JetPack 6.2): the table of release 10.1-GA (commit 96e7811, headed
  "TensorRT 10.0": opsets 9 to 20) and the importers of that release. docs/Changelog.md (commit 0137504,
  release 10.6) lists what 10.2 and 10.3 added: tensor `axes` of Slice, another plugin for ScatterElements.
- `cache_update`, from TensorRT 10.15 on: the table headed "TensorRT 10.15" (opsets 9 to 24).

The importers of 10.1 refuse no newer opset; their ONNX is 1.16, whose newest one is 21. An int4 graph has it:
DequantizeLinear has no blocks in older ones. DOUBLE is read as FLOAT. Blocks of int4 weights: 64 and 128
(NVIDIA's TensorRT documentation, "Quantization Schemes").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lira_engine import Bundle, LiraError
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.recipe import Form, StageRecipe
from lira_engine.lowering.passes.downgrade_opset import DowngradeOpset
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline
from lira_engine.lowering.weights import constant_matmuls
from lira_export.config import LlmConfig

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
NUMBERS = FLOATS | {TensorProto.INT32, TensorProto.INT64}
EVERY = NUMBERS | {TensorProto.BOOL}
QUANTIZED = {TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN}

_BY_TYPES = {
    "AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh CumSum Einsum Elu Erf "
    "Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid "
    "HardSwish Hardmax InstanceNormalization IsInf LayerNormalization LeakyRelu Log LogSoftmax "
    "LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu Pow QuantizeLinear "
    "Reciprocal Resize Round Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh "
    "ThresholdedRelu": FLOATS,
    "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign": FLOATS - {TensorProto.BFLOAT16},
    "Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual "
    "Max Mean Min Mod Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax "
    "ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu ScatterElements ScatterND Shrink "
    "Sign SpaceToDepth Sub Sum TopK": NUMBERS,
    "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If "
    "Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze "
    "Where": EVERY,
    "Cast CastLike": EVERY | {TensorProto.UINT8},
    "And Not Or Xor": {TensorProto.BOOL},
    "DequantizeLinear": QUANTIZED,
}  # fmt: skip
OLDER = {name: types for names, types in _BY_TYPES.items() for name in names.split()}
NEWER = OLDER | {
    "Attention": FLOATS,
    "Pow": NUMBERS,
    "RMSNormalization": FLOATS,
    "RotaryEmbedding": FLOATS,
    "TensorScatter": FLOATS | {TensorProto.INT32},
}
TABLES = {"decomposed": OLDER, "cache_update": NEWER}
OPSETS = {"decomposed": range(9, 21), "cache_update": range(9, 25)}

# The inputs that hold an operator's data, if not all do: the others are shapes, indices, axes, conditions.
_FIRST = {"Reshape", "Expand", "Gather", "Slice", "Split", "Squeeze", "Unsqueeze", "Resize", "Tile", "TopK"}
_DATA: dict[str, tuple[int, ...]] = dict.fromkeys(_FIRST | {"DequantizeLinear", "QuantizeLinear"}, (0,))
_DATA |= {name: (0,) for name in OLDER if name.startswith("Reduce")}
_DATA |= {"Where": (1, 2), "ScatterElements": (0, 2), "ScatterND": (0, 2), "TensorScatter": (0, 1)}
_DATA |= {"Attention": (0, 1, 2), "RotaryEmbedding": (0, 1, 2)}
# The input that must be constant.
_CONSTANT = {"Squeeze": 1, "Unsqueeze": 1, "Slice": 3, "Resize": 3, "TopK": 1}
_CONSTANT |= {name: 1 for name in OLDER if name.startswith("Reduce")}


class Graph:
    """A graph with the types and shapes of all its tensors, as ONNX infers them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
        graph = self.model.graph
        self.types: dict[str, int] = {}
        self.shapes: dict[str, list[int | str]] = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            self.shapes[value.name] = [
                d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim
            ]
        self.constants = {one.name for one in graph.initializer}
        self.constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
        for one in graph.initializer:
            self.types[one.name], self.shapes[one.name] = one.data_type, list(one.dims)

    def unsupported(self, dialect: str) -> Iterator[str]:
        """Yield what the parser of that dialect does not support."""
        opsets = {one.domain: one.version for one in self.model.opset_import}
        if opsets.keys() != {""}:
            yield f"domains {sorted(opsets)}"
        older_with_blocks = dialect == "decomposed" and opsets[""] == 21 and self.has("DequantizeLinear")
        if opsets[""] not in OPSETS[dialect] and not older_with_blocks:
            yield f"opset {opsets['']}"
        if self.model.functions:
            yield "functions"
        for node in self.model.graph.node:
            for reason in self.of_node(node, TABLES[dialect]):
                yield f"{node.op_type} {node.name}: {reason}"

    def is_static(self, name: str) -> bool:
        return all(isinstance(size, int) for size in self.shapes[name])

    def number(self, name: str) -> float:
        """Return the value of an initializer; infinity for any other tensor."""
        found = [numpy_helper.to_array(one) for one in self.model.graph.initializer if one.name == name]
        return float(found[0].item()) if found else float("inf")

    def has(self, op_type: str) -> bool:
        return any(node.op_type == op_type for node in self.model.graph.node)

    def of_node(self, node: onnx.NodeProto, table: dict[str, set[int]]) -> Iterator[str]:
        if node.domain or node.op_type not in table:
            yield "no such operator"
            return
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        places = _DATA.get(node.op_type, range(len(node.input)))
        data = [node.input[i] for i in places if i < len(node.input) and node.input[i]]
        types = {
            TensorProto.FLOAT if t == TensorProto.DOUBLE else t for t in map(self.types.__getitem__, data)
        }
        if node.op_type == "Cast":
            types.add(TensorProto.FLOAT if attributes["to"] == TensorProto.DOUBLE else attributes["to"])
        if not types <= table[node.op_type]:
            yield f"types {[TensorProto.DataType.Name(one) for one in types]}"
        place = _CONSTANT.get(node.op_type)
        if place is not None and place < len(node.input) and node.input[place] not in self.constants:
            yield f"input {place} is no constant"
        if node.op_type in _RULES and not _RULES[node.op_type](self, node, attributes):
            yield f"{attributes}, {[self.shapes.get(name) for name in node.input]}"


Rule = Callable[[Graph, onnx.NodeProto, dict[str, Any]], bool]


def _resize(graph: Graph, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    places = {b"half_pixel", b"pytorch_half_pixel", b"tf_half_pixel_for_nn", b"asymmetric", b"align_corners"}
    return (
        given.get("mode", b"nearest") in (b"nearest", b"linear")
        and given.get("coordinate_transformation_mode", b"half_pixel") in places
        and given.get("keep_aspect_ratio_policy", b"stretch") == b"stretch"
        and not given.get("antialias")
        and not node.input[1]
    )


def _dequantize(graph: Graph, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    """Symmetric only. An int4 weight has one blocked dimension, one of the last two, and rows of whole
    bytes."""
    shape, scales = (graph.shapes[name] for name in node.input[:2])
    if node.input[1] not in graph.constants or (len(node.input) > 2 and node.input[2] not in graph.constants):
        return False
    if graph.types[node.input[0]] != TensorProto.INT4:
        return len(scales) <= 1
    blocked = [i for i, (size, count) in enumerate(zip(shape, scales, strict=True)) if size != count]
    return (
        len(node.input) == 2
        and shape[-1] % 2 == 0
        and blocked == [given["axis"]]
        and given["axis"] >= len(shape) - 2
        and given["block_size"] in (64, 128)
        and scales[given["axis"]] * given["block_size"] == shape[given["axis"]]
    )


def _attention(graph: Graph, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    """Inputs q, k, v and a mask, all 4D; one output, y."""
    return (
        len(list(filter(None, node.input))) <= 4
        and all(len(graph.shapes[name]) == 4 for name in node.input if name)
        and len(node.output) == 1
        and not (given.get("softcap") or given.get("qk_matmul_output_mode"))
    )


def _equal_ranks(graph: Graph, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
    return (
        len({len(graph.shapes[name]) for name in node.input}) == 1
        and given.get("reduction", b"none") == b"none"
    )


_RULES: dict[str, Rule] = {
    "Attention": _attention,
    "DequantizeLinear": _dequantize,
    "Gemm": lambda graph, node, given: all(len(graph.shapes[name]) == 2 for name in node.input[:2]),
    "GridSample": lambda graph, node, given: len(graph.shapes[node.input[0]]) == 4,
    "LayerNormalization": lambda graph, node, given: len(node.output) == 1,
    "MaxPool": lambda graph, node, given: len(node.output) == 1,
    "QuantizeLinear": lambda graph, node, given: graph.number(node.input[2]) == 0,
    "Range": lambda graph, node, given: len({graph.types[name] for name in node.input}) == 1,
    "Resize": _resize,
    "RotaryEmbedding": lambda graph, node, given: graph.types[node.input[3]] == TensorProto.INT64,
    "ScatterElements": _equal_ranks,
    "ScatterND": lambda graph, node, given: given.get("reduction", b"none") == b"none",
    "Squeeze": lambda graph, node, given: len(node.input) > 1 or graph.is_static(node.input[0]),
    "TensorScatter": lambda graph, node, given: given.get("axis") == -2
    and all(len(graph.shapes[name]) == 4 for name in node.input[:2]),
    "TopK": lambda graph, node, given: given.get("sorted", 1) == 1 and graph.number(node.input[1]) < 3840,
}  # fmt: skip


def lowered(model: ir.Model, stage: str, precision: str, dialect: str) -> Graph:
    passes = tensorrt_pipeline(stage, precision, dialect, lm_head_parts=2 if stage == "llm" else 1)
    return Graph(ir.serde.serialize_model(apply(model, passes)))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dialect", TABLES)
def test_the_parser_supports_lowered_stages(
    nano_bundle: Path, dialect: str, precision: str, stage: str
) -> None:
    graph = lowered(ir.load(Bundle.open(nano_bundle).stage_file(stage)), stage, precision, dialect)
    assert not list(graph.unsupported(dialect))


LLM = LlmConfig(
    vocab_size=31,
    hidden_size=128,
    intermediate_size=192,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_position_embeddings=64,
    rope_scaling_factor=2.0,
    family="qwen2",
)


@pytest.mark.parametrize("context", [64, 96])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("dialect", TABLES)
def test_the_parser_supports_lowered_language_models(
    random_llm: Callable[[LlmConfig, int], ir.Model], dialect: str, precision: str, context: int
) -> None:
    """With biases, and with positions up to and beyond the trained ones."""
    graph = lowered(random_llm(LLM, context), "llm", precision, dialect)
    assert not list(graph.unsupported(dialect))
    assert graph.has("DequantizeLinear") == (precision == "int4")
    assert graph.has("Pow") == (context > 64)


@pytest.mark.parametrize("kind", ["w8a8", "fp8"])
@pytest.mark.parametrize("dialect", TABLES)
def test_the_parser_supports_operands_in_eight_bits(random_llm: Any, dialect: str, kind: str) -> None:
    model = random_llm(LLM, 64)
    recipe = StageRecipe({one.name: Form(kind, range=(-8.0, 8.0)) for one in constant_matmuls(model.graph)})
    passes = tensorrt_pipeline("llm", "mixed", dialect, recipe=recipe)
    graph = Graph(ir.serde.serialize_model(apply(model, passes)))
    assert graph.has("QuantizeLinear") and not list(graph.unsupported(dialect))


@pytest.mark.parametrize("stage", ["llm", "sefe"])
@pytest.mark.parametrize("dialect", TABLES)
def test_the_parser_supports_a_recipe(nano_bundle: Path, dialect: str, stage: str) -> None:
    """Of all forms, in the blocks of target tensorrt; 432 and 160 inputs are no multiple of 64 or 128."""
    model = ir.load(Bundle.open(nano_bundle).stage_file(stage))
    forms = cycle(
        [Form("int4", 64), Form("int8", 128), *(Form(k, range=(-8.0, 6.0)) for k in ("w8a8", "fp8"))]
    )
    names = [one.name for one in constant_matmuls(model.graph)]
    recipe = StageRecipe(dict(zip(names, forms, strict=False)))
    passes = tensorrt_pipeline(
        stage, "mixed", dialect, blocks=(128, 64), lm_head_parts=2 if stage == "llm" else 1, recipe=recipe
    )
    graph = Graph(ir.serde.serialize_model(apply(model, passes)))
    assert graph.has("Pad") and not list(graph.unsupported(dialect))


def test_int4_needs_a_newer_opset_for_its_blocks_only(random_llm: Any) -> None:
    passes = [*tensorrt_pipeline("llm", "int4", "decomposed"), DowngradeOpset(20, ir_version=9)]
    with pytest.raises(LiraError, match=r"operator DequantizeLinear .* cannot be expressed in opset 20"):
        apply(random_llm(LLM, 64), passes)


def test_the_tables_refuse_a_newer_dialect_and_broken_restrictions(
    nano_bundle: Path, random_llm: Any
) -> None:
    """The newer dialect for the older parser, and each restriction that is broken."""
    newer = lowered(random_llm(LLM, 64), "llm", "fp16", "cache_update")
    said = "\n".join(newer.unsupported("decomposed"))
    for operator in ("Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization"):
        assert f"{operator} " in said
    assert "opset 24" in said and "no such operator" in said

    def unsupported(model: onnx.ModelProto) -> str:
        return "\n".join(Graph(model).unsupported("decomposed"))

    encoder = apply(
        ir.load(Bundle.open(nano_bundle).stage_file("pixel_encoder")),
        tensorrt_pipeline("pixel_encoder", "fp16", "decomposed"),
    )
    model = ir.serde.serialize_model(encoder)
    assert not unsupported(model)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    next(one for one in resize.attribute if one.name == "antialias").i = 1
    assert f"Resize {resize.name}: " in unsupported(model)

    int4 = ir.serde.serialize_model(
        apply(random_llm(LLM, 64), tensorrt_pipeline("llm", "int4", "decomposed"))
    )
    store = next(node for node in int4.graph.node if node.op_type == "ScatterElements")
    store.attribute.append(helper.make_attribute("reduction", "add"))
    assert f"ScatterElements {store.name}: " in unsupported(int4)
    small = tensorrt_pipeline("llm", "int4", "decomposed", block=32)
    assert "DequantizeLinear " in unsupported(ir.serde.serialize_model(apply(random_llm(LLM, 64), small)))
