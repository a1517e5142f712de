"""The query, key and value projections of a layer become one matmul."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, nodes_of
from lira_engine.lowering.weights import lazy_initializer

_WEIGHTS = ("packed", "scales")


class PackQkv(ir.passes.InPlacePass):
    """One matmul per layer in place of three: a decode step waits for its threads less often.

    Requires: nothing.
    Does: joins the query, key and value of each `com.microsoft.GroupQueryAttention` where three `MatMulNBits`
        without biases compute them from one input in the same way; the node takes the three in one tensor.
        Weights are joined when the file is written, one layer at a time. Others stay, as those in eight bits,
        which are sums of two matmuls.
    Ensures: no three such matmuls are left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for attention in nodes_of(model, "GroupQueryAttention", domain=CONTRIB):
            projections = _projections(attention)
            if projections is not None:
                _join(model.graph, attention, projections)
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for attention in nodes_of(model, "GroupQueryAttention", domain=CONTRIB):
            if _projections(attention) is not None:
                raise ir.passes.PostconditionError(f"the projections of {attention.name} were not joined")


def _projections(attention: ir.Node) -> list[ir.Node] | None:
    """Return the matmuls of query, key and value if they differ in weights and number of outputs alone."""
    producers = [value.producer() if value is not None else None for value in attention.inputs[:3]]
    matmuls = [node for node in producers if node is not None and node.op_type == "MatMulNBits"]
    if len(matmuls) < 3:
        return None
    first = matmuls[0]
    keys = ("K", "bits", "block_size", "accuracy_level")
    alike = all(
        len(node.inputs) == 3
        and node.inputs[0] is first.inputs[0]
        and all(node.attributes[key].as_int() == first.attributes[key].as_int() for key in keys)
        and all(weight is not None and weight.is_initializer() for weight in node.inputs[1:])
        for node in matmuls
    )
    return matmuls if alike else None


def _join(graph: ir.Graph, attention: ir.Node, matmuls: Sequence[ir.Node]) -> None:
    name = f"{matmuls[0].name}.qkv"
    weights = []
    for position, kind in enumerate(_WEIGHTS, 1):
        tensors = [tensor for node in matmuls if (tensor := _tensor(node.inputs[position])) is not None]
        assert len(tensors) == len(matmuls)
        sizes = [[int(size) for size in tensor.shape] for tensor in tensors]  # type: ignore[arg-type]
        shape = (sum(size[0] for size in sizes), *sizes[0][1:])
        read = partial(_joined, tensors)
        weights.append(lazy_initializer(graph, f"{name}.{kind}", tensors[0].dtype, shape, read))
    attributes = {key: value.as_int() for key, value in matmuls[0].attributes.items() if key != "N"}
    joined = ir.node(
        "MatMulNBits",
        [matmuls[0].inputs[0], *weights],
        {**attributes, "N": sum(node.attributes["N"].as_int() for node in matmuls)},
        domain=CONTRIB,
        num_outputs=1,
        name=name,
    )
    graph.insert_before(matmuls[0], joined)
    # Whatever else reads the query reads its number of rows; the joined tensor has as many.
    ir.convenience.replace_all_uses_with(matmuls[0].outputs[0], joined.outputs[0])
    for position in (1, 2):
        attention.replace_input_with(position, None)
    for node in matmuls:
        read_before = node.inputs[1:]
        graph.remove(node, safe=True)
        for value in read_before:
            if value is not None and value.name is not None and not value.uses():
                del graph.initializers[value.name]


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else value.const_value


def _joined(tensors: Sequence[ir.TensorProtocol]) -> np.ndarray:
    return np.concatenate([tensor.numpy() for tensor in tensors])
