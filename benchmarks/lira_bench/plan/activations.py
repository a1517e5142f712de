"""Count the memory of a graph's intermediate values, and the bytes that its nodes move, from shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir

from lira_bench.plan import polynomial
from lira_bench.plan.operators import IN_PLACE, VIEWS, operations, shape_of
from lira_bench.plan.polynomial import Terms

FLOAT_BYTES = 4
"""Sizes are those of fp32 values; an engine in fp16 takes half."""


def constants(graph: ir.Graph) -> set[ir.Value]:
    """Return the initializers and the values computed from them alone, once, before the first run."""
    found: set[ir.Value] = set(graph.initializers.values())
    for node in graph:
        if all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def peak(graph: ir.Graph) -> list[Terms]:
    """Return the largest sums of the bytes of intermediate values that live at the same time.

    A value lives from its node to its last reader, an output to the end; inputs are the caller's. Views share
    memory, and elementwise nodes may write in place. Of the kernels' own buffers, `_inside` is counted.
    """
    fixed = constants(graph)
    memory = _Memory(graph, fixed)
    live: dict[ir.Value, Terms] = {}
    moments: list[Terms] = []
    for node in graph:
        made = [value for value in node.outputs if value not in fixed]
        if not made:
            continue
        memory.read(value for value in node.inputs if value is not None)
        replaced = memory.replaceable(node, live)
        if replaced is not None:
            memory.share(node.outputs[0], replaced)
        for value in made:
            if memory.root(value) is value:
                live[value] = _bytes(value)
        moments.append(polynomial.plus(*live.values(), _inside(node)))
        for value in [value for value in live if memory.unread(value)]:
            del live[value]
    return polynomial.largest(moments)


def moved(graph: ir.Graph) -> tuple[Terms, Terms]:
    """Return the bytes of intermediate values that nodes read and write: of matmuls, and of all other nodes.

    "Matmuls" here are all nodes whose `operations` are counted. Views move nothing. Of a cache only the new
    rows count: what attention reads depends on the context.
    """
    fixed = constants(graph)
    counted: list[Terms] = []
    others: list[Terms] = []
    for node in graph:
        if node.op_type in VIEWS or all(value in fixed for value in node.outputs):
            continue
        values = [*node.inputs, *node.outputs]
        if (node.domain, node.op_type) == ("lira", "CachedAttention"):
            values = [*node.inputs[:3], node.outputs[0]]
        sizes = [_bytes(value) for value in values if value is not None and value not in fixed]
        (others if operations(node) is None else counted).extend(sizes)
    return polynomial.plus(*counted), polynomial.plus(*others)


def _inside(node: ir.Node) -> Terms:
    """Return the bytes of a kernel's own buffers: the scores of attention with a mask (without one, kernels
    keep none), and one level's samples before and after weighting. Not counted: the columns of a convolution,
    packed copies, and the language model's attention."""
    if (node.domain, node.op_type) == ("lira", "DeformableSampling"):
        value, weights = shape_of(node.inputs[0]), shape_of(node.inputs[2])
        return polynomial.of([*weights[:3], weights[4], value[3]], 2 * FLOAT_BYTES)
    if (node.domain, node.op_type) == ("", "Attention") and len(node.inputs) == 4:
        query, key = shape_of(node.inputs[0]), shape_of(node.inputs[1])
        return polynomial.of([*query[:3], key[2]], FLOAT_BYTES)
    return {}


def _bytes(value: ir.Value) -> Terms:
    size = FLOAT_BYTES if value.dtype is None or value.dtype.is_floating_point() else value.dtype.itemsize
    return polynomial.of(shape_of(value), round(size))


class _Memory:
    """Which values share memory, and how many readers each memory still has."""

    def __init__(self, graph: ir.Graph, fixed: set[ir.Value]) -> None:
        self._roots: dict[ir.Value, ir.Value] = {}
        self._readers: Counter[ir.Value] = Counter()
        for node in graph:
            if node.op_type in VIEWS and node.inputs[0] is not None and node.inputs[0] not in fixed:
                self._roots[node.outputs[0]] = self.root(node.inputs[0])
            if (node.domain, node.op_type) == ("lira", "CachedAttention"):
                # Caches belong to the caller and are updated in place.
                for before, after in zip(node.inputs[3:5], node.outputs[1:], strict=True):
                    assert before is not None
                    self._roots[after] = before
        for node in graph:
            self._readers.update(self.root(value) for value in node.inputs if value is not None)
        self._kept = {self.root(value) for value in graph.outputs}

    def root(self, value: ir.Value) -> ir.Value:
        while value in self._roots:
            value = self._roots[value]
        return value

    def read(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            self._readers[self.root(value)] -= 1

    def unread(self, root: ir.Value) -> bool:
        return self._readers[root] <= 0 and root not in self._kept

    def share(self, value: ir.Value, root: ir.Value) -> None:
        """Let `value`, with its readers, reuse the memory of `root`."""
        self._readers[root] += self._readers.pop(value, 0)
        if value in self._kept:
            self._kept.add(root)
        self._roots[value] = root

    def replaceable(self, node: ir.Node, live: dict[ir.Value, Terms]) -> ir.Value | None:
        """Return the memory that the node's output may reuse, or None."""
        if node.domain != "" or node.op_type not in IN_PLACE or len(node.outputs) != 1:
            return None
        wanted = _bytes(node.outputs[0])
        for value in node.inputs:
            root = None if value is None else self.root(value)
            if root in live and self.unread(root) and live[root] == wanted:
                return root
        return None
