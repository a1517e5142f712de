"""Cut a lowered graph between its nodes: parts of it, and the tensors that cross each cut."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import helper


class Cuts:
    """The nodes of an ONNX file that depend on its inputs and that its outputs need, in the file's order.

    What depends on weights alone belongs to whoever reads it: a cut behind the DequantizeLinear of a weight
    would make the weight a tensor of the run.

    Attributes:
        nodes: cut k, from 0 to their number, lies behind the first k of them. inputs: shape, with 0 for a
            dynamic size, and dtype of the graph's. outputs: names of the graph's.
    """

    def __init__(self, graph: Path) -> None:
        """Read the graph without its external weights."""
        self.file = graph
        self._model = onnx.load(graph, load_external_data=False)
        self._inputs = {value.name: value for value in self._model.graph.input}
        self.inputs = {name: _sizes(value) for name, value in self._inputs.items()}
        self.outputs = [value.name for value in self._model.graph.output]
        self._weights = {tensor.name: tensor for tensor in self._model.graph.initializer}
        nodes = list(self._model.graph.node)
        self._makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
        self._all = nodes
        live, depends = self._needed(self.outputs, set()), set(self._inputs) - set(self._weights)
        moving = []
        for i, node in enumerate(nodes):
            if depends & set(_reads(node)):
                depends |= set(node.output)
                if i in live:
                    moving.append(node)
        self._depends = depends
        self.nodes = moving
        self._made_at = {name: i for i, node in enumerate(moving) for name in node.output if name}
        self._last_read = {name: i for i, node in enumerate(moving) for name in _reads(node)}
        self._last_read |= dict.fromkeys(self.outputs, len(moving))

    def crossing(self, cut: int) -> list[str]:
        """Return the tensors that are made before a cut and read behind it, or are outputs of the graph."""
        made = ((name, i) for name, i in self._made_at.items() if i < cut)
        return [name for name, _ in made if self._last_read.get(name, -1) >= cut]

    def read_by(self, number: int) -> list[str]:
        """Return what a node reads, without weights."""
        return [name for name in dict.fromkeys(_reads(self.nodes[number])) if name in self._depends]

    def made_by(self, number: int) -> list[str]:
        """Return what a node makes that anybody reads."""
        return [name for name in self.nodes[number].output if self._last_read.get(name, -1) >= number]

    def needed_for(self, names: Iterable[str], start: int, stop: int) -> list[int]:
        """Return the numbers of the nodes from cut `start` to cut `stop` that tensors depend on."""
        wanted, found = set(names), []
        for i in range(stop - 1, start - 1, -1):
            if wanted & set(self.nodes[i].output):
                found.append(i)
                wanted |= set(_reads(self.nodes[i]))
        return found[::-1]

    @contextmanager
    def written(
        self,
        outputs: Iterable[str],
        given: Mapping[str, np.ndarray],
        types: Mapping[str, np.dtype] | None = None,
    ) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
        """Write the part of the graph that computes `outputs` from the tensors of `given`; yield the file,
        which lies beside the graph, whose external weights it reads, and those of `given` that it reads.

        `types`: of the outputs, for readers that do not infer them.
        """
        names, known = list(outputs), set(given)
        needed = [self._all[i] for i in sorted(self._needed(names, known))]
        read = {name for node in needed for name in _reads(node)} | set(names)
        fed = {name: given[name] for name in given if name in read}
        wanted = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(types[name]), None)
            if types is not None
            else helper.make_empty_tensor_value_info(name)
            for name in names
        ]
        graph = helper.make_graph(
            needed,
            self._model.graph.name,
            [self._inputs.get(name) or _described(name, array) for name, array in fed.items()],
            wanted,
            [tensor for name, tensor in self._weights.items() if name in read],
        )
        part = onnx.ModelProto()
        part.CopyFrom(self._model)
        part.graph.CopyFrom(graph)
        with tempfile.NamedTemporaryFile(dir=self.file.parent, prefix=".part-", suffix=".onnx") as file:
            file.write(part.SerializeToString())
            file.flush()
            yield Path(file.name), fed

    def _needed(self, names: Iterable[str], given: set[str]) -> set[int]:
        """Return the indices of the nodes, of all, that compute `names` from `given` tensors and weights."""
        found: set[int] = set()
        open_names = [name for name in names if name not in given]
        while open_names:
            index = self._makers.get(open_names.pop())
            if index is not None and index not in found:
                found.add(index)
                open_names += [name for name in _reads(self._all[index]) if name not in given]
        return found


def portable_names(graph: Path) -> dict[str, str]:
    """Return the name of each node of a bundle's graph, by its own name and by those of what it makes:
    lowered nodes keep one of these where they can."""
    found: dict[str, str] = {}
    for node in onnx.load(graph, load_external_data=False).graph.node:
        found |= dict.fromkeys((node.name, *node.output), node.name)
    found.pop("", None)
    return found


def _reads(node: onnx.NodeProto) -> list[str]:
    """Return the tensors that a node reads, also inside its bodies, which may see those of the graph."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                found += [name for name in _reads(inner) if name not in own]
                own |= set(inner.output)
    return found


def _sizes(value: onnx.ValueInfoProto) -> tuple[tuple[int, ...], np.dtype]:
    tensor = value.type.tensor_type
    shape = tuple(size.dim_value for size in tensor.shape.dim)
    return shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type)


def _described(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape)
