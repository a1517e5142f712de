"""Repeat a few nodes over parts of tensors by `Scan`: parts stay in the caches, and weights are kept once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

Body = Callable[[ir.tape.Tape, Sequence[ir.Value]], ir.Value]
"""(tape, a part of each input) -> the part of the output. It may read values of the graph outside."""


def scan(tape: ir.tape.Tape, name: str, inputs: Sequence[ir.Value], body: Body) -> ir.Value:
    """Return the outputs of `body` for each index of the first axis of `inputs`, stacked along a first axis.

    Args:
        name: begins the names of what is in the body; no other node has it. inputs: their dtypes are known.
    """
    inner = ir.tape.Tape()
    parts = [
        ir.Value(name=f"{name}.part.{i}", type=value.type, shape=_without_first(value))
        for i, value in enumerate(inputs)
    ]
    made = body(inner, parts)
    for i, node in enumerate(inner.nodes):
        node.name = f"{name}.{node.op_type}.{i}"
        for j, value in enumerate(node.outputs):
            value.name = f"{node.name}.{j}"
    made.type = made.type or ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(parts, [made], nodes=inner.nodes, name=f"{name}.body")
    return tape.op("Scan", inputs, {"body": graph, "num_scan_inputs": len(inputs)}, name=name)


def _without_first(value: ir.Value) -> ir.Shape | None:
    return ir.Shape(list(value.shape)[1:]) if value.shape is not None else None
