"""Split the language model's portable graph into its decoder layers and its head.

LIRA-2B's language model is 7.6 GB in fp32. Calibration runs it a piece at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from lira_engine.bundle.manifest import MEND
from lira_engine.engines.llm_tensors import cache_output
from lira_engine.errors import LiraError
from lira_engine.lowering.function_calls import CACHED_ATTENTION, calls_of
from lira_engine.lowering.weights import constant_matmuls

HIDDEN, HIDDEN_OUT = "hidden", "hidden_out"
"""Rows that a piece reads [1, S, C] and makes [1, S, C]; of the last layer [1, K, C], of K asked rows."""
EMBEDS, POSITION, ASKED = "inputs_embeds", "position", "logit_positions"


@dataclass(frozen=True)
class Piece:
    """A part of the language model as a portable graph, with the initializers' names of the whole.

    Attributes:
        name: "layers.3", or "head" (final norm and LM head).
        model: of a layer hidden [1, S, C], position [1], its two caches -> hidden_out [1, S, C] and the
            caches; the last layer also takes logit_positions [K] and makes rows [1, K, C]. Of the head hidden
            [1, K, C] -> logits [1, K, V], hidden_states [1, K, C].
        initializers: names of all that it reads; weights: those of its matmuls.
    """

    name: str
    model: ir.Model

    @property
    def initializers(self) -> frozenset[str]:
        return frozenset(self.model.graph.initializers)

    @property
    def weights(self) -> list[str]:
        return [matmul.name for matmul in constant_matmuls(self.model.graph)]


def split_llm(model: ir.Model) -> list[Piece]:
    """Return the decoder layers in order, and the head. `model` stays as it is; weights are not read.

    Raises LiraError if the graph is not one that `lira-edge export` wrote.
    """
    layers = len(calls_of(model, CACHED_ATTENTION))
    names = [HIDDEN, *(f"layers.{i}.residual" for i in range(layers))]
    pieces = [
        Piece(f"layers.{i}", _cut(model, EMBEDS if i == 0 else names[i], [names[i + 1]], _caches(i)))
        for i in range(layers)
    ]
    head = _cut(model, names[-1], ["logits", "hidden_states"], [])
    return [*pieces, Piece("head", head)]


def _caches(layer: int) -> list[str]:
    return [f"{kind}_cache.{layer}" for kind in ("key", "value")]


def _cut(model: ir.Model, source: str, results: Sequence[str], caches: Sequence[str]) -> ir.Model:
    """Return what computes `results` and the new caches from `source`, the position and the caches."""
    piece = model.clone()
    graph = piece.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    missing = [name for name in (EMBEDS, source, *results, *caches) if name not in values]
    if missing:
        raise LiraError(f"the language model's graph has no {missing[0]}, expected one as exported; {MEND}")
    hidden = ir.val(HIDDEN, dtype=ir.DataType.FLOAT, shape=values[source].shape)
    # Positions are counted from the number of rows, which the embeddings give to all layers.
    for value in {values[source], values[EMBEDS]}:
        ir.convenience.replace_all_uses_with(value, hidden)
    outputs = [values[name] for name in results]
    graph.outputs[:] = [*outputs, *(values[cache_output(name)] for name in caches)]
    if caches:
        outputs[0].name = HIDDEN_OUT
    (common.RemoveUnusedNodesPass())(piece)
    (common.RemoveUnusedFunctionsPass())(piece)
    _bounded(graph, hidden)
    kept = [value for value in graph.inputs if value.uses() and value.name != EMBEDS]
    graph.inputs[:] = [hidden, *kept]
    return piece


def _bounded(graph: ir.Graph, hidden: ir.Value) -> None:
    """Raises LiraError if the piece reads rows other than `hidden`."""
    embeds = next(value for value in graph.inputs if value.name == EMBEDS)
    if embeds.uses() or not hidden.uses():
        raise LiraError(f"the language model's graph cannot be split at its layers; {MEND}")
