"""Constant weights become inputs of the graph: one graph for many layers, whose weights lie in a file."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir


class FeedWeights(ir.passes.InPlacePass):
    """Weights from outside, which a session neither copies nor keeps.

    Requires: nothing.
    Does: makes an input of each initializer that `feed` wants by its name, after the other inputs, in the
        order in which nodes read them. Inputs keep their values (`const_value`), computed when they are asked
        for, for whoever writes them.
    Ensures: no such initializer is left.
    """

    def __init__(self, feed: Callable[[str], bool]) -> None:
        super().__init__()
        self.feed = feed

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        read = dict.fromkeys(value for node in graph for value in node.inputs if value is not None)
        fed = [value for value in read if value.is_initializer() and self.feed(str(value.name))]
        for value in fed:
            del graph.initializers[str(value.name)]
            graph.inputs.append(value)
        return ir.passes.PassResult(model, bool(fed))

    def ensures(self, model: ir.Model) -> None:
        left = [name for name, value in model.graph.initializers.items() if value.uses() and self.feed(name)]
        if left:
            raise ir.passes.PostconditionError(f"{left[0]} is no input of the graph")
