"""Lower the language model for passes of many rows: layer by layer, in 8 bits, weights from a file.

A prompt has about 2,100 rows, a region 260. In such passes 8-bit matmuls with a scale per output are more
than twice as fast as 4-bit ones in blocks, and more accurate; for one row the 4-bit weights are faster, since
they are fewer bytes. So a quantized engine for CPUs has both. All decoder layers share one small graph, whose
weights are inputs: nothing of them stays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from lira_engine.bundle.external_data import save_graph
from lira_engine.engines.llm_tensors import (
    ALIGNMENT,
    LAYER_ALIGNMENT,
    LAYERS,
    PASS_INPUTS,
    is_cache,
    prefill_file,
)
from lira_engine.lowering.function_calls import CACHED_ATTENTION, calls_of
from lira_engine.lowering.llm_pieces import Piece, split_llm
from lira_engine.lowering.passes.decompose_cached_attention import DecomposeCachedAttention
from lira_engine.lowering.passes.delay_concat import DelayConcat
from lira_engine.lowering.passes.feed_weights import FeedWeights
from lira_engine.lowering.passes.fuse_residual_norm import FuseResidualNorm
from lira_engine.lowering.passes.quantize_rows import QuantizeRows
from lira_engine.lowering.passes.use_group_query_attention import UseGroupQueryAttention
from lira_engine.lowering.passes.use_simplified_layer_normalization import UseSimplifiedLayerNormalization
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.pipeline import CLEAN_UP_FOR_ORT, Pass, apply


@dataclass(frozen=True)
class LayerGroup:
    """Decoder layers that share a graph.

    Attributes:
        layers: their numbers. models: the graph of each; they differ in the values of their weights alone.
    """

    layers: list[int]
    models: list[ir.Model]


def prefill_groups(
    model: ir.Model, first: Sequence[Pass], eight_bits: Callable[[str], bool]
) -> list[LayerGroup]:
    """Return the graphs of the language model's decoder layers for passes of many rows.

    Inputs: `PASS_INPUTS`, then weights. Outputs: the rows after the layer, hidden_out [1, S, C], and the
    caches, updated in place. Of the last layer only the caches: what comes after its attention is for rows
    whose logits are asked, which the language model's own engine reads.

    Args:
        model: the portable graph. first: passes of a recipe, which scale channels. eight_bits: of a weight's
            name: whether it may be stored in 8 bits with a scale per output; others are fed in fp32.

    Returns no group if the rotation depends on the rows that are filled (a cache beyond the trained length).
    Raises LiraError if the graph is not one that `lira-edge export` wrote.
    """
    model = apply(model, first)
    call = calls_of(model, CACHED_ATTENTION)[0]
    if not all(table is not None and table.is_initializer() for table in call.inputs[-2:]):
        return []
    groups: dict[tuple[object, ...], LayerGroup] = {}
    layers = split_llm(model)[:-1]
    for i, piece in enumerate(layers):
        lowered = _lowered(piece, i, i == len(layers) - 1, eight_bits)
        group = groups.setdefault(_structure(lowered), LayerGroup([], []))
        group.layers.append(i)
        group.models.append(lowered)
    return list(groups.values())


def _lowered(piece: Piece, layer: int, last: bool, eight_bits: Callable[[str], bool]) -> ir.Model:
    graph = piece.model.graph
    if last:
        graph.outputs[:] = graph.outputs[1:]
        common.RemoveUnusedNodesPass()(piece.model)
        graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    own = f"layers.{layer}."
    lowered = apply(
        piece.model,
        (
            QuantizeRows(eight_bits),
            DelayConcat(),
            WidenWeights(),
            # Of the last layer's attention only the cache's rows are of use, and only its body shows that.
            *(() if last else (UseGroupQueryAttention(),)),
            DecomposeCachedAttention(),
            UseSimplifiedLayerNormalization(),
            FuseResidualNorm(),
            common.InlinePass(),
            common.RemoveUnusedNodesPass(),
            FeedWeights(lambda name: name.startswith(own)),
            *CLEAN_UP_FOR_ORT,
        ),
    )
    for value in (*lowered.graph.inputs, *lowered.graph.outputs):
        name = str(value.name)
        value.name = name.removesuffix(f".{layer}") if is_cache(name) else name.removeprefix(own)
    return lowered


def _structure(model: ir.Model) -> tuple[object, ...]:
    inputs = ((value.name, value.dtype, str(value.shape)) for value in model.graph.inputs)
    return (*inputs, *(node.op_type for node in model.graph), len(model.graph.outputs))


def save_prefill(groups: Sequence[LayerGroup], folder: Path) -> None:
    """Write the graph of each group, and its layers' weights beside it, one after the other: those of a layer
    in the order of the graph's inputs. Weights are computed one at a time.

    Raises OSError if the disk is full.
    """
    for number, group in enumerate(groups):
        graph = group.models[0]
        graph.metadata_props[LAYERS] = ",".join(map(str, group.layers))
        file = folder / prefill_file(number)
        with file.with_suffix(".data").open("wb") as data:
            for model in group.models:
                data.write(b"\0" * (-data.tell() % LAYER_ALIGNMENT))
                for value in weights_of(model):
                    data.write(b"\0" * (-data.tell() % ALIGNMENT))
                    assert value.const_value is not None
                    data.write(np.ascontiguousarray(value.const_value.numpy()).data)
        for value in weights_of(graph):
            value.const_value = None
        save_graph(graph, file)


def weights_of(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that are weights."""
    return [value for value in model.graph.inputs if value.name not in PASS_INPUTS]
