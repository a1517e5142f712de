"""Run a portable graph and hand out the rows that its matmuls with constant weights read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lira_calib.runs.session import opened
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.weights import constant_matmuls

Sink = Callable[[str, np.ndarray], None]
"""(weight name, rows [R, K] float32 that its matmul read in one run). Rows are valid during the call."""
Watched = dict[str, list[str]]
"""Tensors that matmuls read, with the weights that each is multiplied by, in the graph's order."""

GROUP_BYTES = 512 << 20
"""Watched tensors of one run. LIRA-2B's pixel encoder has 4 GB of them."""


def observe(
    model: ir.Model,
    feeds: Iterable[Mapping[str, np.ndarray]],
    sink: Sink,
    folder: Path,
    threads: int | None = None,
    group_bytes: int = GROUP_BYTES,
) -> None:
    """Run `model` on `feeds` and call `sink` with the input of each matmul that has a constant weight.

    A tensor that several matmuls read is watched once, and handed out for each of them; so a weight that
    belongs to several matmuls gets the rows of all. Tensors are
    watched in groups, each in a run of its own that ends at the group's last tensor.

    Args:
        model: a stage's portable graph, or a piece of the language model's; it stays as it is. Its graph has
            the stage's name.
        feeds: inputs by name. Iterated once per group: it begins anew each time, as a list does.
        folder: where graphs are written for a while.
        group_bytes: bytes of the tensors of a group; one that is larger is a group of its own.

    Raises TypeError for feeds that can be iterated only once; LiraError as opening and running do.
    """
    if isinstance(feeds, Iterator):
        raise TypeError("feeds can be iterated once only, expected a list, or what begins anew each time")
    first = next(iter(feeds), None)
    if first is None:
        return
    watched = watched_tensors(model.graph)
    given = {name: watched.pop(name) for name in first if name in watched}
    for feed in feeds if given else ():
        for name, weights in given.items():
            hand_out(feed[name], weights, sink)
    passes = cpu_pipeline(model.graph.name or "")
    for names in _groups(model.graph, list(watched), first, group_bytes):
        with opened(watching(model, names, alone=True), passes, folder, threads) as session:
            for feed in feeds:
                for name, array in session.run(feed, names):
                    hand_out(array, watched[name], sink)


def watched_tensors(graph: ir.Graph) -> Watched:
    """Return the tensors that matmuls with constant weights read."""
    found: Watched = {}
    for matmul in constant_matmuls(graph):
        tensor = matmul.node.inputs[0]
        assert tensor is not None and tensor.name is not None
        found.setdefault(tensor.name, []).append(matmul.name)
    return found


def watching(model: ir.Model, names: Sequence[str], alone: bool = False) -> ir.Model:
    """Return a copy of `model` with these computed tensors as outputs, behind its own or `alone`."""
    copy = model.clone()
    outputs = copy.graph.outputs
    values = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
    if alone:
        outputs.clear()
    outputs.extend(values[name] for name in names if values[name] not in outputs)
    return copy


def hand_out(array: np.ndarray, weights: Sequence[str], sink: Sink) -> None:
    """Call `sink` with the rows of a matmul's input [..., K] for each of the weights that it is multiplied
    by."""
    for weight in weights:
        sink(weight, array.reshape(-1, array.shape[-1]))


def _groups(
    graph: ir.Graph, names: Sequence[str], feeds: Mapping[str, np.ndarray], limit: int
) -> Iterator[list[str]]:
    """Yield the tensors in groups of at most `limit` bytes in a run on `feeds`."""
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        found = feeds.get(value.name or "")
        if found is not None and value.shape is not None:
            sizes |= {str(axis): size for axis, size in zip(value.shape, found.shape, strict=True)}
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    group: list[str] = []
    held = 0
    for name in names:
        needed = _bytes(values[name].shape, sizes, limit)
        if group and held + needed > limit:
            yield group
            group, held = [], 0
        group.append(name)
        held += needed
    if group:
        yield group


def _bytes(shape: ir.Shape | None, sizes: Mapping[str, int], unknown: int) -> int:
    """Return the bytes of an fp32 tensor; `unknown` if the sizes of the inputs do not tell its own."""
    found = [axis if isinstance(axis, int) else sizes.get(str(axis)) for axis in shape or [None]]
    known = [size for size in found if size is not None]
    return 4 * math.prod(known) if len(known) == len(found) else unknown
