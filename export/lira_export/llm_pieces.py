"""Run the language model's graph from the disk layer by layer, with one layer's weights in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from lira_engine.ort.session import open_session

from .runnable import runnable


def run_in_pieces(
    path: Path,
    num_layers: int,
    feeds: Mapping[str, np.ndarray],
    layers_at_once: int = 1,
    threads: int | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield (layers done, outputs of the last of them).

    Outputs are ``layers.{i}.residual`` [1,S,C]; after the last layer logits and hidden_states.

    Args:
        path: the graph of :func:`lira_export.graphs.llm.build_llm`, its weights in a file beside it.
        feeds: inputs_embeds, position, logit_positions. KV caches start empty.
    """
    model = ir.load(path)
    piece_path = path.with_name(f".{path.stem}.piece.onnx")
    state = dict(feeds)
    begin = "inputs_embeds"
    try:
        for first in range(0, num_layers, layers_at_once):
            last = min(first + layers_at_once, num_layers) - 1
            final = last == num_layers - 1
            ends = ["logits", "hidden_states"] if final else [f"layers.{last}.residual"]
            _save_piece(model, piece_path, begin, ends)
            with runnable(piece_path, "llm") as file:
                session = open_session(file, threads, prepack=False)
                inputs = {node.name: node.shape for node in session.get_inputs()}
                empty = {n: np.zeros(shape, np.float32) for n, shape in inputs.items() if "_cache." in n}
                found = session.run(ends, {n: state[n] for n in inputs if n not in empty} | empty)
                del session
            outputs = dict(zip(ends, found, strict=True))
            yield last + 1, outputs
            begin = ends[0]
            state[begin] = outputs[begin]
    finally:
        piece_path.unlink(missing_ok=True)


def _save_piece(model: ir.Model, path: Path, begin: str, ends: list[str]) -> None:
    """Save the nodes between two values; their weights stay in the file of the whole graph."""
    names = dict.fromkeys([begin, *(str(value.name) for value in model.graph.inputs)])
    graph = ir.convenience.extract(model.graph, list(names), ends)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    piece = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    onnx.save(ir.to_proto(piece), path)
