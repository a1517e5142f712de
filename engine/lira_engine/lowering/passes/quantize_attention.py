"""Attention over many rows multiplies 8-bit integers, one head at a time."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from lira_engine.lowering.attention import (
    heads_last,
    mask_of,
    replace_attention,
    require_plain,
    sizes_of,
)
from lira_engine.lowering.nodes import CONTRIB, constant_scalar, constant_vector, nodes_of
from lira_engine.lowering.passes.fold_bias import EIGHT_BITS
from lira_engine.lowering.scan import scan

SMALLEST = 512
"""Rows from which on it is faster than ONNX Runtime's `MultiHeadAttention`, which is fp32."""
_UNSIGNED, _SIGNED = 255.0, 127.0
_FLOAT, _INT8 = ir.DataType.FLOAT, ir.DataType.INT8


class QuantizeAttention(ir.passes.InPlacePass):
    """softmax(Q K^T) V with both products in 8 bits: unsigned queries and probabilities, signed keys and
    values.

    Requires: nothing. Run it after the passes that make 8-bit matmuls, before `UseMultiHeadAttention`.
    Does: replaces each `Attention` in fp32 without mask and cache whose query is computed by an 8-bit matmul,
        with one known number of heads and of rows, at least `smallest`. Each channel of keys and values is
        moved and scaled to -1 to 1: scores may be moved by any constant per query, and what keys lose in
        scale queries gain; values get both back at the end. Queries have one scale, each row of probabilities
        has its own. All ranges are measured in each run. Source of the moved keys: SageAttention
        (arXiv:2410.02367), which takes the mean; here it is the middle of the range.
    Ensures: no such `Attention` is left.
    """

    def __init__(self, smallest: int = SMALLEST) -> None:
        super().__init__()
        self.smallest = smallest

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        for attention in chosen:
            _replace(model.graph, attention)
        if chosen:
            model.graph.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        for attention in self._chosen(model):
            raise ir.passes.PostconditionError(f"{attention.name} was not replaced")

    def _chosen(self, model: ir.Model) -> list[ir.Node]:
        return [node for node in nodes_of(model, "Attention") if self._is_large(node)]

    def _is_large(self, attention: ir.Node) -> bool:
        if mask_of(attention) is not None or not _is_in_8_bits(attention.inputs[0]):
            return False
        try:
            require_plain(attention, _FLOAT)
            sizes_of(attention)
        except ir.passes.PreconditionError:
            return False
        counts = [_rows(value) for value in attention.inputs[:2]]
        return all(count is not None and count >= self.smallest for count in counts)


def _is_in_8_bits(query: ir.Value | None) -> bool:
    """Return whether a query is what an 8-bit matmul makes, in another shape, scaled or moved."""
    moves = ("Reshape", "Transpose", "Split", "Add", "Mul")
    node = query.producer() if query is not None else None
    while node is not None and node.domain == "" and node.op_type in moves:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.domain == CONTRIB and node.op_type in EIGHT_BITS


def _rows(value: ir.Value | None) -> int | None:
    """Return S of [B,H,S,D]; None if it is not known."""
    assert value is not None and value.shape is not None
    return value.shape[2] if isinstance(value.shape[2], int) else None


class _Channels(NamedTuple):
    """[B,S,H*D] in signed integers, and what makes floats of them: integers / 127 * half +
    middle; both are [H*D]."""

    integers: ir.Value
    half: ir.Value
    middle: ir.Value


def _replace(graph: ir.Graph, attention: ir.Node) -> None:
    sizes, keys = sizes_of(attention), _rows(attention.inputs[1])
    assert keys is not None
    tape = ir.tape.Tape()
    query, key, value = (heads_last(tape, one) for one in attention.inputs[:3])
    keyed = _channels(tape, key, sizes.heads * sizes.head_size)
    valued = _channels(tape, value, sizes.heads * sizes.value_size)
    scaled = tape.op("Mul", [query, keyed.half])
    integers, step, zero = tape.op_multi_out("DynamicQuantizeLinear", [scaled], num_outputs=3)
    integers.type = ir.TensorType(ir.DataType.UINT8)
    scale = attention.attributes.get_float("scale", sizes.head_size**-0.5)
    step = tape.op("Mul", [step, constant_scalar(tape, scale)])
    heads = [
        _heads(tape, integers, sizes.heads, sizes.head_size, [2, 0, 1, 3]),  # [H,B,S,D]
        _heads(tape, keyed.integers, sizes.heads, sizes.head_size, [2, 0, 3, 1]),  # [H,B,D,L]
        _heads(tape, valued.integers, sizes.heads, sizes.value_size, [2, 0, 1, 3]),  # [H,B,L,D]
    ]
    out = scan(
        tape,
        f"{attention.name}.heads",
        heads,
        lambda inner, parts: _attend(inner, (parts[0], step, zero), parts[1], parts[2], keys),
    )
    rows_first = tape.op("Transpose", [out], {"perm": [1, 2, 0, 3]})
    merged = tape.op("Reshape", [rows_first, constant_vector(tape, [0, 0, -1])])
    moved = tape.op("Add", [tape.op("Mul", [merged, valued.half]), valued.middle])
    replace_attention(graph, attention, tape, moved, sizes)


def _channels(tape: ir.tape.Tape, x: ir.Value, width: int) -> _Channels:
    """Return [B,S,width] in integers, each channel over its own range."""
    # Ranges are those of all images together: ONNX Runtime reduces the first of two axes 8 times as fast as
    # the middle one of three.
    rows, axis = tape.op("Reshape", [x, constant_vector(tape, [-1, width])]), constant_vector(tape, [0])
    high, low = (tape.op(name, [rows, axis], {"keepdims": 0}) for name in ("ReduceMax", "ReduceMin"))
    two, least = constant_scalar(tape, 0.5), constant_scalar(tape, 1e-30)
    middle = tape.op("Mul", [tape.op("Add", [high, low]), two])
    half = tape.op("Max", [tape.op("Mul", [tape.op("Sub", [high, low]), two]), least])
    unit = tape.op("Mul", [tape.op("Sub", [x, middle]), tape.op("Reciprocal", [half])])
    zero = tape.op("Constant", [], {"value": ir.tensor(0, dtype=_INT8)})
    integers = tape.op("QuantizeLinear", [unit, constant_scalar(tape, 1 / _SIGNED), zero])
    integers.type = ir.TensorType(_INT8)
    return _Channels(integers, half, middle)


def _heads(tape: ir.tape.Tape, x: ir.Value, heads: int, size: int, perm: list[int]) -> ir.Value:
    """Return [B,S,H*D] with the axes `perm` of [B,S,H,D]."""
    split = tape.op("Reshape", [x, constant_vector(tape, [0, 0, heads, size])])
    ordered = tape.op("Transpose", [split], {"perm": perm})
    ordered.type = x.type
    return ordered


def _attend(
    tape: ir.tape.Tape,
    query: tuple[ir.Value, ir.Value, ir.Value],
    key: ir.Value,
    value: ir.Value,
    keys: int,
) -> ir.Value:
    """One head: query (integers [B,S,D], step, zero), key [B,D,L], value [B,L,D] -> [B,S,D]."""
    integers, step, zero = query
    signed, unsigned = constant_scalar(tape, 1 / _SIGNED), constant_scalar(tape, 1 / _UNSIGNED)
    scores = tape.op("MatMulIntegerToFloat", [integers, key, step, signed, zero], domain=CONTRIB)
    shares = tape.op("Softmax", [scores], {"axis": -1})
    by_row = tape.op("Reshape", [shares, constant_vector(tape, [-1, keys])])
    largest = tape.op("ReduceMax", [by_row, constant_vector(tape, [1])], {"keepdims": 0})
    rounded = tape.op("QuantizeLinear", [by_row, tape.op("Mul", [largest, unsigned])], {"axis": 0})
    whole = tape.op("Shape", [shares])
    shares8 = tape.op("Reshape", [rounded, whole])
    mixed = tape.op("MatMulIntegerToFloat", [shares8, value, unsigned, signed], domain=CONTRIB)
    rows = tape.op(
        "Concat", [tape.op("Shape", [shares], {"end": 2}), constant_vector(tape, [1])], {"axis": 0}
    )
    return tape.op("Mul", [mixed, tape.op("Reshape", [largest, rows])])
