"""Outputs that are appended to 4-bit matmuls and cut off again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.int4_blocks import WeightBits
from lira_engine.lowering.passes.pad_outputs import PadOutputs
from lira_engine.lowering.passes.quantize_matmul import QuantizeMatMul
from lira_engine.lowering.passes.use_half_contrib_operators import UseHalfContribOperators
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.quantization import Quantization
from lira_engine.ort.llm import OrtLlm

TOLERANCE = {False: 2e-6, True: 4e-3}
"""Between two orders of a sum in fp32, and in fp16: two steps of numbers below 4."""


def matmuls(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "MatMulNBits"]


def outputs(model: ir.Model) -> list[int]:
    return [node.attributes["N"].as_int() for node in matmuls(model)]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_result_stays_the_same(
    bits: int, half: bool, run: Any, counts: Any, values: Any, case: Any
) -> None:
    model = QuantizeMatMul(lambda name: WeightBits(bits))(case.model()).model
    if half:
        model = UseHalfContribOperators()(model).model
    y, x = model.graph.outputs[0], {"x": case.x()}
    described, before = (y.name, y.dtype, list(y.shape)), run(model, x)[0]
    dtypes = [node.outputs[0].dtype for node in matmuls(model)]
    weights = {name: values(model, name) for name in model.graph.initializers}
    assert PadOutputs()(model).modified
    assert outputs(model) == [192] * (bits // 4) and counts(model)["Slice"] == bits // 4
    y = model.graph.outputs[0]
    assert (y.name, y.dtype, list(y.shape)) == described
    for matmul in matmuls(model):
        assert [list(value.shape) for value in matmul.inputs[1:]] == [[192, 5, 16], [192 * 5]]
        for value in matmul.inputs[1:]:
            old, new = weights[value.name], values(model, value.name)
            assert old.any() and new.shape == tuple(value.shape) and not new[len(old) :].any()
            np.testing.assert_array_equal(new[: len(old)], old)
        assert matmul.outputs[0].shape == ([1, "S", 192] if bits == 4 else None)
    assert [node.outputs[0].dtype for node in matmuls(model)] == dtypes
    onnx.checker.check_model(ir.to_proto(model))
    # The same sums; a CPU's kernel adds those of its last outputs in another order.
    np.testing.assert_allclose(run(model, x)[0], before, rtol=0, atol=TOLERANCE[half])


def test_a_weight_of_two_matmuls_is_filled_once(new_graph: Any, matrix: Any, run: Any) -> None:
    g = new_graph([1, 36])
    right = g.weight("w", matrix(36, 36))
    model = g.finish(g.op("MatMul", g.op("MatMul", g.x, right, shape=[1, 36]), right, shape=[1, 36]))
    model = QuantizeMatMul(lambda name: WeightBits(4))(model).model
    x = {"x": np.ones((1, 36), np.float32)}
    before = run(model, x)[0]
    PadOutputs()(model)
    assert outputs(model) == [64, 64]
    shapes = [list(value.shape) for value in matmuls(model)[1].inputs[1:]]
    assert shapes == [[64, 2, 16], [128]]
    np.testing.assert_allclose(run(model, x)[0], before, rtol=0, atol=TOLERANCE[False])


@pytest.mark.parametrize("width", [8, 64, 136])
def test_eights_stay(width: int, new_graph: Any, matrix: Any, assert_unchanged: Any) -> None:
    g = new_graph([2, 32])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(32, width)), shape=[2, width]))
    assert_unchanged(PadOutputs(), QuantizeMatMul(lambda name: WeightBits(4))(model).model)


def test_it_reads_no_weights(case: Any) -> None:
    def read(*arguments: object) -> Any:
        raise AssertionError("a weight was read")

    model = QuantizeMatMul(lambda name: WeightBits(4), read)(case.model()).model
    assert PadOutputs()(model).modified
    with pytest.raises(AssertionError, match="a weight was read"):
        matmuls(model)[0].inputs[1].const_value.numpy()  # type: ignore[union-attr]


def test_others_are_refused(case: Any, new_graph: Any, matrix: Any) -> None:
    def quantized() -> tuple[ir.Model, ir.Node]:
        model = QuantizeMatMul(lambda name: WeightBits(4))(case.model()).model
        return model, matmuls(model)[0]

    model, matmul = quantized()
    with pytest.raises(ir.passes.PostconditionError, match=f"{matmul.name} has 130 outputs"):
        PadOutputs().ensures(model)
    matmul.resize_inputs(4)
    with pytest.raises(ir.passes.PreconditionError, match=f"{matmul.name} has more than weights and scales"):
        PadOutputs()(model)
    model, matmul = quantized()
    model.graph.append(ir.node("Identity", [matmul.inputs[2]], name="other"))
    with pytest.raises(ir.passes.PreconditionError, match=r"other reads w\.q4\.scales, which is"):
        PadOutputs()(model)
    model, matmul = quantized()
    computed = ir.node("Identity", [matmul.inputs[2]])
    model.graph.insert_before(matmul, computed)
    matmul.replace_input_with(2, computed.outputs[0])
    with pytest.raises(ir.passes.PreconditionError, match=f"a weight of {matmul.name} is computed"):
        PadOutputs()(model)


@pytest.mark.parametrize("head_bits", [4, 8])
def test_an_llm_for_cuda_says_what_it_said(
    head_bits: int, small_llm: Callable[..., ir.Model], tmp_path: Path
) -> None:
    """In a prompt and in steps; the vocabulary has 29 tokens."""
    embeds = np.random.default_rng(1).standard_normal((9, 96), dtype=np.float32)
    found = []
    for padded in (False, True):
        passes = cuda_pipeline("llm", "int4", quantization=Quantization(32, head_bits))
        model = apply(small_llm(), [one for one in passes if padded or type(one) is not PadOutputs])
        heads = [node for node in matmuls(model) if node.attributes["N"].as_int() in (29, 64)]
        assert len(heads) == head_bits // 4
        assert any(width % 8 for width in outputs(model)) != padded
        ir.save(model, tmp_path / "llm.onnx")
        with OrtLlm(tmp_path / "llm.onnx", threads=1) as llm:
            assert llm.sizes["vocab_size"] == 29
            cache = llm.new_cache()
            chunks = np.split(embeds, [5, 6, 7, 8])
            logits = [llm.forward(rows, cache, range(len(rows))).logits for rows in chunks]
            found.append(np.concatenate(logits))
    assert np.abs(found[0]).max() > 0.1
    np.testing.assert_allclose(*found, rtol=0, atol=TOLERANCE[True])
