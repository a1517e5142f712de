"""Find, make and replace nodes of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


def nodes_of(model: ir.Model, *op_types: str, domain: str = "") -> list[ir.Node]:
    """Return the nodes of these operators in the main graph, in its order. A list: callers edit the graph."""
    return [node for node in model.graph if node.domain == domain and node.op_type in op_types]


def require_inlined(model: ir.Model) -> None:
    """Raise PreconditionError if the main graph calls a function of the model."""
    for node in model.graph:
        if node.op_identifier() in model.functions:
            raise ir.passes.PreconditionError(f"{node.name} calls {node.op_type}: inline functions first")


def require_last_axis(norm: ir.Node) -> None:
    """Raise PreconditionError if a norm is over more than the last axis."""
    axis, x = norm.attributes.get_int("axis", -1), norm.inputs[0]
    rank = len(x.shape) if x is not None and x.shape is not None else None
    if axis != -1 and (rank is None or axis != rank - 1):
        raise ir.passes.PreconditionError(f"{norm.name} normalises from axis {axis}, expected the last one")


def replace_node(
    graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node], outputs: Sequence[ir.Value | None]
) -> None:
    """Replace `old` by `new`. Each of `outputs` takes name, type, shape and uses of one of old's outputs;
    None stands for an output without uses."""
    pairs = [(a, b) for a, b in zip(old.outputs, outputs, strict=False) if b is not None]
    ir.convenience.replace_nodes_and_values(
        graph, old, [old], new, [a for a, _ in pairs], [b for _, b in pairs]
    )


def constant_vector(tape: ir.tape.Tape, values: Sequence[int]) -> ir.Value:
    """Return the output of a new Constant: integers [N], int64."""
    return tape.op("Constant", [], {"value_ints": values})


def constant_scalar(tape: ir.tape.Tape, value: float, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """Return the output of a new Constant: a scalar of a floating-point dtype."""
    return tape.op("Constant", [], {"value": ir.tensor(np.array(value, dtype.numpy()))})
