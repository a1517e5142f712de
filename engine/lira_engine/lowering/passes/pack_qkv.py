"""Query, key and value projections of a layer become one product."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.weights import lazy_initializer

_WEIGHTS = ("packed", "scales")


class PackQkv(ir.passes.InPlacePass):
    """One product per layer instead of three: a decoding step waits for its threads less often.

    Requires: `com.microsoft.GroupQueryAttention`, its query, key and value from `MatMulNBits` without biases.
    Does: joins the three where they read the same input in the same way; the node takes query, key and value
        in one tensor. Weights are joined when the file is written, one layer at a time. Projections with
        biases, or of two products (eight bits), stay.
    Ensures: nothing beyond that; a graph without such nodes is left as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for attention in [node for node in model.graph if node.op_type == "GroupQueryAttention"]:
            parts = [value.producer() if value is not None else None for value in attention.inputs[:3]]
            products = [node for node in parts if node is not None and node.op_type == "MatMulNBits"]
            if len(products) == 3 and _alike(products):
                _join(model.graph, attention, products)
                modified = True
        return ir.passes.PassResult(model, modified)


def _alike(products: Sequence[ir.Node]) -> bool:
    """Whether they differ in their weights and in the number of outputs alone."""
    first = products[0]
    keys = ("K", "bits", "block_size", "accuracy_level")
    return all(
        len(node.inputs) == 3
        and node.inputs[0] is first.inputs[0]
        and all(node.attributes[key].as_int() == first.attributes[key].as_int() for key in keys)
        and all(weight is not None and weight.is_initializer() for weight in node.inputs[1:])
        for node in products
    )


def _join(graph: ir.Graph, attention: ir.Node, products: Sequence[ir.Node]) -> None:
    name = f"{products[0].name}.qkv"
    weights = []
    for position, kind in enumerate(_WEIGHTS, 1):
        tensors = [tensor for node in products if (tensor := _tensor(node.inputs[position])) is not None]
        assert len(tensors) == len(products)
        sizes = [[int(size) for size in tensor.shape] for tensor in tensors]  # type: ignore[arg-type]
        shape = (sum(size[0] for size in sizes), *sizes[0][1:])
        read = partial(_joined, tensors)
        weights.append(lazy_initializer(graph, f"{name}.{kind}", tensors[0].dtype, shape, read))
    attributes = {key: value.as_int() for key, value in products[0].attributes.items() if key != "N"}
    joined = ir.node(
        "MatMulNBits",
        [products[0].inputs[0], *weights],
        {**attributes, "N": sum(node.attributes["N"].as_int() for node in products)},
        domain="com.microsoft",
        num_outputs=1,
        name=name,
    )
    graph.insert_before(products[0], joined)
    # The number of rows is read off the query; the joined tensor has as many.
    ir.convenience.replace_all_uses_with(products[0].outputs[0], joined.outputs[0])
    for position in (1, 2):
        attention.replace_input_with(position, None)
    for node in products:
        read_before = node.inputs[1:]
        graph.remove(node, safe=True)
        for value in read_before:
            if value is not None and value.name is not None and not value.uses():
                del graph.initializers[value.name]


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else value.const_value


def _joined(tensors: Sequence[ir.TensorProtocol]) -> np.ndarray:
    return np.concatenate([tensor.numpy() for tensor in tensors])
