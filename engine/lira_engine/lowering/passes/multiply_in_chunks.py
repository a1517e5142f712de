"""Two 8-bit matmuls with an activation between them run on a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, constant_vector, nodes_of, replace_node
from lira_engine.lowering.passes.fold_bias import EIGHT_BITS
from lira_engine.lowering.scan import scan

_CACHED = 6 << 20
"""Bytes of an activation that stay in the caches; one above this leaves them between its three nodes."""
_FEWEST = 64
"""Rows below which a matmul is slower than what this saves."""


class MultiplyInChunks(ir.passes.InPlacePass):
    """Feed-forward layers over many pixels: their inner activations are the largest tensors of an encoder.

    Requires: nothing. Run it after `FoldBias`.
    Does: where an 8-bit matmul, `Gelu` or `Relu`, `QuantizeLinear` if there is one, and an 8-bit matmul
        follow each other with no other reader, over a known number of rows whose inner activations are more
        than 6 MiB, repeats them by `Scan` for chunks of at most so many. A `DynamicQuantizeMatMul` measures
        the range of each chunk, which is at most that of all rows.
    Ensures: no such sequence over many rows is left in the main graph.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for matmul in nodes_of(model, *EIGHT_BITS, domain=CONTRIB):
            nodes = _sequence(matmul)
            rows = _chunk(nodes)
            if rows is not None:
                _repeat(model.graph, nodes, rows)
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for matmul in nodes_of(model, *EIGHT_BITS, domain=CONTRIB):
            if _chunk(_sequence(matmul)) is not None:
                raise ir.passes.PostconditionError(f"{matmul.name} is still over all rows")


def _sequence(matmul: ir.Node) -> list[ir.Node]:
    """Return a matmul, what follows it and the second matmul; an empty list if something else follows."""
    nodes, kinds = [matmul], (("Gelu", "Relu"), ("QuantizeLinear", *EIGHT_BITS), EIGHT_BITS)
    for kind in kinds:
        if len(nodes) > 1 and nodes[-1].op_type in EIGHT_BITS:
            break
        output = nodes[-1].outputs[0]
        uses = list(output.uses())
        if len(uses) != 1 or output.is_graph_output():
            return []
        if uses[0].idx != 0 or uses[0].node.op_type not in kind:
            return []
        nodes.append(uses[0].node)
    return nodes


def _chunk(nodes: list[ir.Node]) -> int | None:
    """Return how many rows to compute at a time; None for all of them."""
    if not nodes:
        return None
    x, (_, width) = nodes[0].inputs[0], _sizes(nodes[0])
    if x is None or x.shape is None:
        return None
    sizes = [size for size in list(x.shape)[:-1] if isinstance(size, int)]
    if len(sizes) < len(x.shape) - 1:
        return None
    rows = math.prod(sizes)
    if 4 * width * rows <= _CACHED:
        return None
    fitting = (n for n in range(_CACHED // (4 * width), _FEWEST - 1, -1) if rows % n == 0)
    return next(fitting, None)


def _sizes(matmul: ir.Node) -> tuple[int, int]:
    """Return inputs and outputs of an 8-bit matmul with a constant weight."""
    weight = matmul.inputs[1]
    assert weight is not None and weight.shape is not None
    inputs, outputs = (int(size) for size in weight.shape)  # type: ignore[arg-type]
    return inputs, outputs


def _repeat(graph: ir.Graph, nodes: list[ir.Node], rows: int) -> None:
    first, last = nodes[0], nodes[-1]
    x = first.inputs[0]
    assert x is not None and x.shape is not None
    inputs, outputs = _sizes(first)[0], _sizes(last)[1]
    tape = ir.tape.Tape()
    chunks = tape.op("Reshape", [x, constant_vector(tape, [-1, rows, inputs])])
    chunks.type, chunks.shape = x.type, ir.Shape((None, rows, inputs))

    def body(inner: ir.tape.Tape, parts: Sequence[ir.Value]) -> ir.Value:
        (value,) = parts
        for node in nodes:
            value = inner.op(
                node.op_type, [value, *node.inputs[1:]], dict(node.attributes), domain=node.domain
            )
        return value

    made = scan(tape, f"{first.name}.chunks", [chunks], body)
    shape = [int(size) for size in list(x.shape)[:-1]]  # type: ignore[arg-type]
    whole = tape.op("Reshape", [made, constant_vector(tape, [*shape, outputs])])
    replace_node(graph, last, tape.nodes, [whole])
    for node in reversed(nodes[:-1]):
        graph.remove(node, safe=True)
