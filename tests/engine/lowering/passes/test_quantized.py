"""Quantized products against the same graph with the weights that the integers stand for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.accuracy import rms_error
from lira_engine.engines.precision import PRECISIONS
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.int4_blocks import dequantize, quantize, residual
from lira_engine.lowering.passes.quantize_matmul import QuantizeMatMul, WeightBits
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import (
    UseDynamicQuantizeMatMul,
    quantized,
    scales_of,
)
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.quantization import Quantization
from lira_engine.ort.session import open_session

INPUTS, OUTPUTS, ROWS = 160, 130, 9
DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
ACTIVATION_ERROR = (
    0.01  # of activations rounded to 8 bits per block, as a share of the output's root mean square
)


def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(INPUTS, OUTPUTS)).astype(np.float32) / 12


def product(dtype: str = "fp32") -> ir.Model:
    """x [1,S,INPUTS] times a weight that is kept in `dtype`."""
    x = ir.val("x", ir.DataType.FLOAT, [1, "S", INPUTS])
    stored = ir.val("w", const_value=ir.tensor(weight().astype(DTYPES[dtype].numpy()), name="w"))
    nodes = []
    right = stored
    if dtype != "fp32":
        nodes.append(ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name="cast"))
        right = nodes[-1].outputs[0]
    nodes.append(ir.node("MatMul", [x, right], name="product"))
    y = nodes[-1].outputs[0]
    y.name, y.type, y.shape = "y", x.type, ir.Shape([1, "S", OUTPUTS])
    graph = ir.Graph([x], [y], nodes=nodes, initializers=[stored], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, x: np.ndarray, folder: Path) -> np.ndarray:
    path = folder / "g.onnx"
    ir.save(model, path, external_data="g.data", size_threshold_bytes=0)
    return open_session(path, threads=1).run(None, {"x": x})[0]


def rms(error: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt((error**2).mean() / (expected**2).mean()))


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1, ROWS, INPUTS)).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_four_and_eight_bits(bits: int, block: int, dtype: str, x: np.ndarray, tmp_path: Path) -> None:
    model = QuantizeMatMul(lambda name: WeightBits(bits, block))(product(dtype)).model
    model = WidenWeights()(model).model
    w = weight().astype(DTYPES[dtype].numpy()).astype(np.float32)
    first = quantize(w, block)
    kept = dequantize(first, INPUTS)
    if bits == 8:
        kept = kept + dequantize(quantize(residual(w, first), block), INPUTS)
    found = run(model, x, tmp_path)
    # Rounded activations are the only difference from the weights that the integers stand for.
    assert rms(found - x @ kept, x @ kept) < ACTIVATION_ERROR
    assert rms(x @ kept - x @ w, x @ w) > (0.05 if bits == 4 else 0.0005)
    assert {value.dtype for value in model.graph.initializers.values()} <= {
        ir.DataType.UINT8,
        ir.DataType.FLOAT,
    }
    assert Counter(node.op_type for node in model.graph)["MatMulNBits"] == bits // 4


def test_only_what_is_chosen(x: np.ndarray, tmp_path: Path) -> None:
    model = product()
    result = QuantizeMatMul(lambda name: None)(model)
    assert not result.modified and [node.op_type for node in model.graph] == ["MatMul"]
    np.testing.assert_allclose(run(model, x, tmp_path), x @ weight(), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dynamic_int8(dtype: str, x: np.ndarray, tmp_path: Path) -> None:
    model = WidenWeights()(UseDynamicQuantizeMatMul()(product(dtype)).model).model
    w = ir.tensor(weight().astype(DTYPES[dtype].numpy()))
    kept = quantized(w).astype(np.float32) * scales_of(w)
    assert rms(kept - weight(), weight()) < 0.01
    found = run(model, x, tmp_path)
    assert rms(found - x @ kept, x @ kept) < 0.02
    assert [node.op_type for node in model.graph] == ["DynamicQuantizeMatMul"]


def test_small_products_stay(tmp_path: Path) -> None:
    model = product()
    model.graph.initializers["w"].shape = ir.Shape([INPUTS, 100])
    assert not UseDynamicQuantizeMatMul()(model).modified


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_widened_weights_keep_their_values(dtype: str, x: np.ndarray, tmp_path: Path) -> None:
    model = WidenWeights()(product(dtype)).model
    assert [node.op_type for node in model.graph] == ["MatMul"]
    expected = x @ weight().astype(DTYPES[dtype].numpy()).astype(np.float32)
    np.testing.assert_allclose(run(model, x, tmp_path), expected, atol=1e-5)


@pytest.mark.parametrize("fault", ["order", "scales", "nibbles"])
def test_a_wrong_packing_is_far_off(fault: str, x: np.ndarray, tmp_path: Path) -> None:
    """What a build accepts of 4-bit weights (lira_engine.engines.accuracy) is far from any such fault."""
    tolerance = PRECISIONS["int4"].tolerance
    model = QuantizeMatMul(lambda name: WeightBits(4))(product()).model
    right = run(model, x, tmp_path)
    packed, scales = (model.graph.initializers[f"w.q4.{part}"] for part in ("packed", "scales"))
    assert packed.const_value is not None and scales.const_value is not None
    p, s = packed.const_value.numpy(), scales.const_value.numpy()
    if fault == "order":
        packed.const_value = ir.tensor(np.ascontiguousarray(p[:, ::-1]), name=packed.name)
    elif fault == "scales":
        scales.const_value = ir.tensor(np.roll(s, 1) * 2, name=scales.name)
    else:
        packed.const_value = ir.tensor(p << 4 | p >> 4, name=packed.name)
    expected = x @ weight()
    assert rms_error(right, expected) < tolerance / 4
    assert rms_error(run(model, x, tmp_path), expected) > tolerance


def test_the_language_models_weights(tmp_path: Path) -> None:
    choose = Quantization(block=128, lm_head_bits=8).choice(4)
    assert choose("layers.3.q") == WeightBits(4, 128) and choose("lm_head") == WeightBits(8, 128)
    assert Quantization().choice(8)("lm_head") == WeightBits(8, 32)
    with pytest.raises(ValueError, match="expected 4 or 8 bits"):
        Quantization(lm_head_bits=3)
    with pytest.raises(ValueError, match="expected 4 or 8 bits"):
        Quantization(block=33)
    lowered = apply(product(), [cpu_pipeline("llm", "int4")[0]])
    assert [node.op_type for node in lowered.graph] == ["MatMulNBits"]
