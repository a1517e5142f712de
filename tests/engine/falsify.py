"""A device that computes wrongly on purpose: graphs with a wrong node, which run in the place of others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Fault:
    """A node whose output is wrong.

    Attributes:
        node: its name. kind: "lopsided" (positive values are nine times as large, which no norm undoes),
            "nan"; a factor for float32. output: its index.
        rows: only passes of the language model with so many rows are wrong. position: only the pass whose
            first row is there. fused: tensors inside a fused kernel, which is wrong only while none of them
            is returned. stage: the name of the graph, if nodes of others have the same name. tiles: only
            passes with so many.
    """

    node: str
    kind: str | float = "lopsided"
    output: int = 0
    rows: int | None = None
    position: int | None = None
    fused: tuple[str, ...] = ()
    stage: str = ""
    tiles: int | None = None


def falsify(graph: Path, faults: Iterable[Fault]) -> Path:
    """Write a graph with the faults that apply to it beside it, or return it as it is."""
    model = onnx.load(graph, load_external_data=False)
    returned = {value.name for value in model.graph.output}
    applied = 0
    for number, fault in enumerate(faults):
        found = [i for i, node in enumerate(model.graph.node) if node.name == fault.node]
        elsewhere = fault.stage not in ("", model.graph.name)
        if found and not elsewhere and not returned & set(fault.fused):
            _insert(model, found[0], fault, f"fault{number}")
            applied += 1
    if not applied:
        return graph
    file = graph.with_name(f".false-{graph.name.lstrip('.')}")
    file.write_bytes(model.SerializeToString())
    return file


def _insert(model: onnx.ModelProto, index: int, fault: Fault, name: str) -> None:
    node = model.graph.node[index]
    made = node.output[fault.output]
    right, wrong = (
        f"{made}.{name}.right",
        made if fault.rows is fault.position is fault.tiles is None else f"{name}.wrong",
    )
    node.output[fault.output] = right
    new = []
    if fault.kind == "lopsided":
        more = [f"{name}.{times}" for times in (1, 2, 4, 8)]
        new.append(helper.make_node("Relu", [right], more[:1]))
        new += [helper.make_node("Add", [a, a], [b]) for a, b in pairwise(more)]
        new.append(helper.make_node("Add", [right, more[-1]], [wrong]))
    elif fault.kind == "nan":
        new.append(helper.make_node("Sub", [right, right], [f"{name}.zero"]))
        new.append(helper.make_node("Div", [f"{name}.zero", f"{name}.zero"], [wrong]))
    else:
        _constant(model, f"{name}.factor", np.float32(fault.kind))
        new.append(helper.make_node("Mul", [right, f"{name}.factor"], [wrong]))
    if wrong != made:
        known = {value.name for value in model.graph.input}
        if fault.tiles is not None:
            new.append(helper.make_node("Shape", ["pixel_values"], [f"{name}.rows"], start=0, end=1))
            _constant(model, f"{name}.wanted", np.array([fault.tiles]))
        elif fault.rows is not None and "inputs_embeds" in known:
            new.append(helper.make_node("Shape", ["inputs_embeds"], [f"{name}.rows"], start=1, end=2))
            _constant(model, f"{name}.wanted", np.array([fault.rows]))
        else:
            own = "position" in known  # else the last row that the pass fills
            new.append(helper.make_node("Identity", ["position" if own else "seqlens_k"], [f"{name}.rows"]))
            _constant(model, f"{name}.wanted", np.array([fault.position], np.int64 if own else np.int32))
        new.append(helper.make_node("Equal", [f"{name}.rows", f"{name}.wanted"], [f"{name}.now"]))
        new.append(helper.make_node("Where", [f"{name}.now", wrong, right], [made]))
    for offset, one in enumerate(new):
        model.graph.node.insert(index + 1 + offset, one)


def _constant(model: onnx.ModelProto, name: str, value: np.ndarray | np.generic) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
