"""8-bit operands beside those of ONNX Runtime's own quantizer: the same tensors, in the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from lira_engine.engines.recipe import Form, StageRecipe
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline

pytest.importorskip("onnxruntime.quantization", reason="pip install lira-edge[calib]")

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(9, 32)).astype(np.float32) + 0.5
UP, DOWN, BIAS = (RANDOM.normal(size=size).astype(np.float32) for size in ((32, 48), (48, 16), (48,)))


def portable(new_graph: Any) -> ir.Model:
    """Two matmuls, with a sum and Relu between them: an input that has both signs, and one that has not."""
    g = new_graph([9, 32])
    hidden = g.op(
        "Add", g.op("MatMul", g.x, g.weight("up", UP), shape=[9, 48]), g.weight("bias", BIAS), shape=[9, 48]
    )
    model: ir.Model = g.finish(
        g.op("MatMul", g.op("Relu", hidden, shape=[9, 48]), g.weight("down", DOWN), shape=[9, 16]), opset=21
    )
    return model


class Operands(NamedTuple):
    """What one matmul reads: the scale and zero point of its input, and its weight's integers and scales."""

    scale: float
    zero: int
    weight: np.ndarray
    scales: np.ndarray


def operands(model: onnx.ModelProto, op_types: tuple[str, ...], places: dict[str, int]) -> list[Operands]:
    """Return the operands of each matmul, in order; `places` are the inputs of contrib operators."""
    made = {name: node for node in model.graph.node for name in node.output}
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in op_types:
            continue
        if places:
            quantize = made[node.input[0]]
            weight, scales = (stored[node.input[places[part]]] for part in ("weight", "scales"))
        else:
            left, right = (_through_casts(made, name) for name in node.input[:2])
            assert left.op_type == right.op_type == "DequantizeLinear"
            quantize = _through_casts(made, left.input[0])
            weight, scales = (stored[name] for name in right.input[:2])
        assert quantize.op_type == "QuantizeLinear"
        scale, zero = (stored[name] for name in quantize.input[1:3])
        found.append(Operands(float(scale), int(zero), weight, scales.astype(np.float32)))
    return found


def _through_casts(made: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto:
    node = made[name]
    return _through_casts(made, node.input[0]) if node.op_type == "Cast" else node


def theirs(model: ir.Model, folder: Path, symmetric: bool) -> tuple[list[Operands], onnx.ModelProto]:
    """Quantize by `quantize_static`, whose ranges are the extremes of X and of what follows from it."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{"x": X}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    ir.save(model, folder / "plain.onnx")
    types = quantization.QuantType
    quantization.quantize_static(
        folder / "plain.onnx",
        folder / "qdq.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=types.QInt8 if symmetric else types.QUInt8,
        weight_type=types.QInt8,
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    found = onnx.load(folder / "qdq.onnx")
    return operands(found, ("MatMul",), {}), found


def recipe() -> StageRecipe:
    hidden = np.maximum(X @ UP + BIAS, 0)
    ranges = {"up": (float(X.min()), float(X.max())), "down": (float(hidden.min()), float(hidden.max()))}
    return StageRecipe({name: Form("w8a8", range=one) for name, one in ranges.items()})


def quantized_tensors(model: onnx.ModelProto) -> int:
    """Return how many tensors go through QuantizeLinear."""
    return sum(node.op_type == "QuantizeLinear" for node in model.graph.node)


@pytest.mark.parametrize("dialect", ["cache_update", "decomposed"])
def test_tensorrt_reads_what_the_quantizer_writes(dialect: str, new_graph: Any, tmp_path: Path) -> None:
    """Symmetric activations; our scales are fp16, so that integers near a tie differ by one."""
    expected, their_model = theirs(portable(new_graph), tmp_path, symmetric=True)
    ours = apply(portable(new_graph), tensorrt_pipeline("sefe", "mixed", dialect, recipe=recipe()))
    proto = ir.to_proto(ours)
    found = operands(proto, ("MatMul",), {})
    assert len(found) == len(expected) == 2
    assert quantized_tensors(proto) == quantized_tensors(their_model) == 2
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.scale, b.scale, rtol=1e-3)
        np.testing.assert_allclose(a.scales, b.scales, rtol=1e-3)
        assert a.zero == b.zero == 0
        difference = np.abs(a.weight.astype(int) - b.weight.astype(int))
        assert difference.max() <= 1 and difference.mean() < 0.02


def test_the_cpu_reads_what_the_quantizer_writes(new_graph: Any, tmp_path: Path) -> None:
    """Unsigned activations with a zero point, to rounding of fp32."""
    expected, their_model = theirs(portable(new_graph), tmp_path, symmetric=False)
    proto = ir.to_proto(apply(portable(new_graph), cpu_pipeline("sefe", "mixed", recipe=recipe())))
    found = operands(proto, ("MatMulIntegerToFloat",), {"weight": 1, "scales": 3})
    assert len(found) == len(expected) == 2
    assert quantized_tensors(proto) == quantized_tensors(their_model) == 2
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.scale, b.scale, rtol=1e-6)
        np.testing.assert_allclose(a.scales, b.scales, rtol=1e-6)
        assert a.zero == b.zero
        np.testing.assert_array_equal(a.weight, b.weight)
    assert found[0].zero not in (0, 128) and found[1].zero == 0
