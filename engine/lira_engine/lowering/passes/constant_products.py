"""Products with constant weights: what passes that quantize look for."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lira_engine.lowering.passes.initializers import weight_of


@dataclass(frozen=True)
class ConstantProduct:
    """`node`: a MatMul of x [..., inputs] with the initializer `name`, or a Cast of it, whose values are
    `weight` [inputs, outputs]."""

    node: ir.Node
    name: str
    weight: ir.TensorProtocol
    inputs: int
    outputs: int


def constant_products(graph: ir.Graph) -> list[ConstantProduct]:
    """In the graph's order. A list: who asks changes the graph."""
    found = []
    for node in graph:
        right = weight_of(node.inputs[1]) if (node.domain, node.op_type) == ("", "MatMul") else None
        if right is None or right.shape is None or len(right.shape) != 2:
            continue
        assert right.name is not None and right.const_value is not None
        inputs, outputs = (int(size) for size in right.shape)  # type: ignore[arg-type]
        found.append(ConstantProduct(node, right.name, right.const_value, inputs, outputs))
    return found
