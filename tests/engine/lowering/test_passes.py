"""What holds for every pass."""

from __future__ import annotations

import importlib
import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering import passes
from lira_engine.lowering.int4_blocks import WeightBits
from lira_engine.lowering.passes.decompose_cached_attention import DecomposeCachedAttention
from lira_engine.lowering.passes.decompose_operators import DecomposeOperators
from lira_engine.lowering.passes.decompose_unfused_attention import DecomposeUnfusedAttention
from lira_engine.lowering.passes.delay_concat import DelayConcat
from lira_engine.lowering.passes.downgrade_opset import DowngradeOpset
from lira_engine.lowering.passes.expand_constants import ExpandConstants
from lira_engine.lowering.passes.feed_weights import FeedWeights
from lira_engine.lowering.passes.fold_bias import FoldBias
from lira_engine.lowering.passes.fuse_residual_norm import FuseResidualNorm
from lira_engine.lowering.passes.keep_channels_last import KeepChannelsLast
from lira_engine.lowering.passes.keep_norms_apart import KeepNormsApart
from lira_engine.lowering.passes.multiply_in_chunks import MultiplyInChunks
from lira_engine.lowering.passes.pack_qkv import PackQkv
from lira_engine.lowering.passes.pad_inputs import PadInputs
from lira_engine.lowering.passes.pad_outputs import PadOutputs
from lira_engine.lowering.passes.quantize_kv_cache import QuantizeKvCache
from lira_engine.lowering.passes.quantize_matmul import QuantizeMatMul
from lira_engine.lowering.passes.quantize_operands import QuantizeOperands
from lira_engine.lowering.passes.quantize_rows import QuantizeRows
from lira_engine.lowering.passes.quantize_weights import QuantizeWeights
from lira_engine.lowering.passes.require_matmuls import RequireMatMuls
from lira_engine.lowering.passes.resolve_cast_like import ResolveCastLike
from lira_engine.lowering.passes.sample_by_gathers import SampleByGathers
from lira_engine.lowering.passes.sample_by_plugin import SampleByPlugin
from lira_engine.lowering.passes.scale_channels import ScaleChannels
from lira_engine.lowering.passes.split_lm_head import SplitLmHead
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import UseDynamicQuantizeMatMul
from lira_engine.lowering.passes.use_group_query_attention import UseGroupQueryAttention
from lira_engine.lowering.passes.use_half_contrib_operators import UseHalfContribOperators
from lira_engine.lowering.passes.use_matmul_integer_to_float import UseMatMulIntegerToFloat
from lira_engine.lowering.passes.use_mixed_precision import UseMixedPrecision
from lira_engine.lowering.passes.use_multi_head_attention import UseMultiHeadAttention
from lira_engine.lowering.passes.use_simplified_layer_normalization import UseSimplifiedLayerNormalization
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.pipeline import Pass

ALL: tuple[Pass, ...] = (
    DecomposeCachedAttention(),
    DecomposeOperators(),
    DecomposeUnfusedAttention(lambda heads, head_size: False),
    DelayConcat(),
    DowngradeOpset(21, ir_version=11),
    ExpandConstants(),
    FeedWeights(lambda name: False),
    FoldBias(),
    FuseResidualNorm(),
    KeepChannelsLast(),
    KeepNormsApart(),
    MultiplyInChunks(),
    PackQkv(),
    PadInputs(lambda name: 256),
    PadOutputs(),
    QuantizeKvCache(),
    QuantizeMatMul(lambda name: WeightBits(4)),
    QuantizeOperands("int8", lambda name: (-1.0, 1.0)),
    QuantizeRows(lambda name: True),
    QuantizeWeights(lambda name, inputs: WeightBits(4, 32)),
    RequireMatMuls([]),
    ResolveCastLike(),
    SampleByGathers(),
    SampleByPlugin("1"),
    ScaleChannels([]),
    SplitLmHead(2),
    UseDynamicQuantizeMatMul(),
    UseGroupQueryAttention(),
    UseHalfContribOperators(),
    UseMatMulIntegerToFloat(lambda name: (-1.0, 1.0)),
    UseMixedPrecision(),
    UseMultiHeadAttention(),
    UseSimplifiedLayerNormalization(),
    WidenWeights(),
)
FOLDER = Path(passes.__file__).parent
FILES = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}


def test_every_file_holds_the_pass_of_its_name_and_has_a_test_file() -> None:
    for name in FILES:
        module = importlib.import_module(f"lira_engine.lowering.passes.{name}")
        found = [
            one
            for one in vars(module).values()
            if inspect.isclass(one)
            and issubclass(one, ir.passes.PassBase)
            and one.__module__ == module.__name__
        ]
        assert [one.__name__.lower() for one in found] == [name.replace("_", "")]
    tests = {path.stem.removeprefix("test_") for path in (Path(__file__).parent / "passes").glob("test_*.py")}
    assert tests == FILES == {type(one).__module__.split(".")[-1] for one in ALL}


@pytest.mark.parametrize("one", ALL, ids=lambda one: type(one).__name__)
def test_every_pass_says_its_contract(one: Pass) -> None:
    text = inspect.getdoc(type(one)) or ""
    assert all(f"{word}: " in text for word in ("Requires", "Does", "Ensures"))
    assert type(one).ensures is not ir.passes.PassBase.ensures
    unconditional = "Requires: nothing" in text
    assert unconditional == (type(one).requires is ir.passes.PassBase.requires)


@pytest.mark.parametrize("one", ALL, ids=lambda one: type(one).__name__)
def test_a_graph_without_its_pattern_stays_byte_for_byte(
    one: Pass, new_graph: Any, assert_unchanged: Any
) -> None:
    g = new_graph([2, 8])
    total = g.op("Add", g.x, g.weight("w", np.ones(8, np.float32)), shape=[2, 8])
    assert_unchanged(one, g.finish(g.op("Sigmoid", total, shape=[2, 8]), opset=21))


@pytest.mark.parametrize("one", ALL, ids=lambda one: type(one).__name__)
def test_checks_read_no_weights(one: Pass, new_graph: Any) -> None:
    """Of LIRA-8B they would take minutes, and more memory than a board has."""

    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    g = new_graph([2, 128])
    w = ir.val("lm_head", ir.DataType.FLOAT, [128, 128])
    w.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([128, 128]), name="lm_head")
    model = g.finish(g.op("MatMul", g.x, w, shape=[2, 128]), opset=21)
    model.graph.register_initializer(w)
    one.requires(model)
    replaces = (
        PadInputs
        | QuantizeMatMul
        | QuantizeOperands
        | QuantizeRows
        | QuantizeWeights
        | SplitLmHead
        | UseDynamicQuantizeMatMul
        | UseMatMulIntegerToFloat
    )
    with pytest.raises(ir.passes.PostconditionError) if isinstance(one, replaces) else nullcontext():
        one.ensures(model)
