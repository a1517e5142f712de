"""Nodes of a graph: to find, and to replace."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def replace_node(
    graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node], outputs: Sequence[ir.Value | None]
) -> None:
    """Put `new` in the place of `old`; `outputs` (None: unused) take over names, types, shapes and uses."""
    pairs = [(a, b) for a, b in zip(old.outputs, outputs, strict=False) if b is not None]
    ir.convenience.replace_nodes_and_values(
        graph, old, [old], new, [a for a, _ in pairs], [b for _, b in pairs]
    )
