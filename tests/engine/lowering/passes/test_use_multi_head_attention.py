"""ONNX Runtime's older operator gives what the standard's Attention gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.passes.use_multi_head_attention import UseMultiHeadAttention
from lira_engine.lowering.pipeline import apply

HEADS, SIZE, QUERIES, KEYS = 3, 4, 5, 7


def encoder(mask: ir.Value | None, transposed: bool = True, **attributes: Any) -> ir.Model:
    """Split heads, attention, joined heads, as torch's exporter writes them; or attention alone."""
    tape = ir.tape.Tape()
    lengths = {"q": QUERIES, "k": KEYS, "v": KEYS}
    if transposed:
        inputs = [floats(name, [1, rows, HEADS * SIZE]) for name, rows in lengths.items()]
        heads = [split(tape, x, rows) for x, rows in zip(inputs, lengths.values(), strict=True)]
    else:
        inputs = heads = [floats(name, [1, HEADS, rows, SIZE]) for name, rows in lengths.items()]
    masks = [] if mask is None else [mask]
    out = tape.op("Attention", [*heads, *masks], attributes, name="attention")
    if transposed:
        out = tape.op("Transpose", [out], {"perm": [0, 2, 1, 3]})
        out = tape.op("Reshape", [out, constant(tape, [1, QUERIES, HEADS * SIZE])])
    out.name, out.type = "out", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([*inputs, *masks], [out], nodes=tape.nodes, opset_imports={"": 24}, name="encoder")
    return ir.Model(graph, ir_version=11)


def floats(name: str, shape: list[int]) -> ir.Value:
    return ir.val(name, dtype=ir.DataType.FLOAT, shape=shape)


def constant(tape: ir.tape.Tape, values: list[int]) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": values})


def split(tape: ir.tape.Tape, x: ir.Value, rows: int) -> ir.Value:
    rows_first = tape.op("Reshape", [x, constant(tape, [1, rows, HEADS, SIZE])])
    heads = tape.op("Transpose", [rows_first], {"perm": [0, 2, 1, 3]})
    heads.shape, heads.type = ir.Shape([1, HEADS, rows, SIZE]), x.type
    return heads


def run(model: ir.Model, feeds: dict[str, np.ndarray], path: Path) -> np.ndarray:
    ir.save(model, path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.mark.portable
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("shape", [None, [1, 1, QUERIES, KEYS], [1, HEADS, QUERIES, KEYS], [QUERIES, KEYS]])
@pytest.mark.parametrize("dtype", [ir.DataType.BOOL, ir.DataType.FLOAT])
@pytest.mark.parametrize("scale", [{}, {"scale": 0.3}])
def test_results_are_the_same(
    transposed: bool, shape: list[int] | None, dtype: ir.DataType, scale: dict[str, float], tmp_path: Path
) -> None:
    mask = None if shape is None else ir.val("mask", dtype=dtype, shape=shape)
    model = encoder(mask, transposed, **scale)
    random = np.random.default_rng(0)
    feeds = {v.name: random.standard_normal([*v.shape]).astype(np.float32) for v in model.graph.inputs}
    if mask is not None and dtype == ir.DataType.BOOL:
        feeds["mask"] = feeds["mask"] > 0
        feeds["mask"][..., 0] = True
    expected = run(model, feeds, tmp_path / "portable.onnx")
    lowered = apply(model, cpu_pipeline("sefe"))
    assert lowered.opset_imports == {"": 21, "com.microsoft": 1}
    found = Counter(node.op_type for node in lowered.graph)
    assert found["MultiHeadAttention"] == 1
    assert found["Transpose"] == (0 if transposed else 4)
    np.testing.assert_allclose(run(lowered, feeds, tmp_path / "lowered.onnx"), expected, atol=1e-6)


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 2.0}])
def test_refuses_more_than_plain_attention(attributes: dict[str, Any]) -> None:
    with pytest.raises(ir.passes.PreconditionError, match="attention is more than plain attention"):
        UseMultiHeadAttention()(encoder(None, **attributes))


def test_refuses_a_mask_that_broadcasts_over_queries() -> None:
    mask = ir.val("mask", dtype=ir.DataType.BOOL, shape=[1, 1, 1, KEYS])
    with pytest.raises(ir.passes.PreconditionError, match="a row for every query"):
        UseMultiHeadAttention()(encoder(mask))


def test_refuses_grouped_heads() -> None:
    model = encoder(None, transposed=False)
    model.graph.inputs[1].shape = ir.Shape([1, 1, KEYS, SIZE])
    with pytest.raises(ir.passes.PreconditionError, match="one static number of heads"):
        UseMultiHeadAttention()(model)


@pytest.mark.parametrize("shape", [[1, 1, "S", KEYS], None])
def test_refuses_masks_without_a_known_row_for_every_query(shape: list[int | str] | None) -> None:
    mask = ir.val("mask", dtype=ir.DataType.BOOL, shape=shape)
    with pytest.raises(ir.passes.PreconditionError, match=r"a mask of known shape|a row for every query"):
        UseMultiHeadAttention()(encoder(mask))


def test_refuses_integers() -> None:
    model = encoder(None, transposed=False)
    model.graph.inputs[0].dtype = ir.DataType.INT32
    with pytest.raises(ir.passes.PreconditionError, match="expected a query in FLOAT or FLOAT16"):
        UseMultiHeadAttention()(model)


def test_only_attention_of_the_standard_is_replaced(new_graph: Any, assert_unchanged: Any) -> None:
    model = encoder(None)
    with pytest.raises(ir.passes.PostconditionError, match="an Attention is left"):
        UseMultiHeadAttention().ensures(model)
    assert UseMultiHeadAttention()(model).modified
    assert_unchanged(UseMultiHeadAttention(), model)
    g = new_graph([1, 2, 8])
    assert_unchanged(UseMultiHeadAttention(), g.finish(g.op("Attention", g.x, domain="com.microsoft")))
