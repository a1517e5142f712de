"""Names of the language model's tensors and files that builders and runners share."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

LM_HEAD = "lm_head"
"""The weight that maps hidden states to logits."""

POSITION, SEQLENS, TOTAL = "position", "seqlens_k", "total_sequence_length"
"""Inputs [1] of a graph that say where a pass begins: the rows that the cache holds, int64; or, as
`GroupQueryAttention` takes it, int32: the last row that the pass fills, and, on the CPU, the rows it holds
then."""


def lengths(position: int, rows: int) -> dict[str, int]:
    """Return what tells a graph where a pass of `rows` begins. A graph takes some of these."""
    return {POSITION: position, SEQLENS: position + rows - 1, TOTAL: position + rows}


def length_inputs(position: int, rows: int) -> dict[str, np.ndarray]:
    """Return `lengths` as a graph takes them."""
    return {
        name: np.array([value], np.int64 if name == POSITION else np.int32)
        for name, value in lengths(position, rows).items()
    }


def with_lengths(feeds: Mapping[str, np.ndarray], inputs: Collection[str]) -> dict[str, np.ndarray]:
    """Return the feeds of a portable graph, with `position`, as those of a graph that has `inputs`."""
    if POSITION not in feeds:
        return dict(feeds)
    lengths = length_inputs(int(feeds[POSITION][0]), feeds["inputs_embeds"].shape[1])
    others = {name: array for name, array in feeds.items() if name != POSITION}
    return others | {name: array for name, array in lengths.items() if name in inputs}


def is_cache(name: str) -> bool:
    """Return whether a graph input or output is a KV cache: `key_cache.0`, `value_cache_out.3`, ..."""
    return is_cache_input(name) or "_cache_out." in name


def is_cache_input(name: str) -> bool:
    """Return whether a graph input is a KV cache."""
    return "_cache." in name


def cache_output(name: str) -> str:
    """Return the name of the output that holds the updated cache of input `name`."""
    return name.replace("_cache.", "_cache_out.")


def cache_scales(name: str) -> str:
    """Return the name of the input that holds the scales of an int8 cache's channels."""
    return name.replace("_cache.", "_scales.")


# The engine for passes of many rows (lowering.prefill writes it, ort.prefill runs it): graphs of decoder
# layers, with the weights of each layer in a file beside it.

PASS_INPUTS = ("hidden", "position", "key_cache", "value_cache")
"""What a pass gives to a layer's graph: rows [1, S, C], the cache's filled rows [1], the layer's caches. Its
other inputs are weights."""
HIDDEN_OUT = "hidden_out"
"""The rows that a layer makes [1, S, C]; the last layer makes none."""
LAYERS = "layers"
"""Key of a graph's metadata: the numbers of the layers that it is for, in the order of their weights."""
ALIGNMENT, LAYER_ALIGNMENT = 64, 65536
"""Bytes at which a tensor, and a layer, begins in the file of weights: a cache line and a page."""


def prefill_file(number: int) -> str:
    """Return the file name of a graph for passes of many rows, NAME.onnx; its weights are in NAME.data."""
    return f"llm.prefill.{number}.onnx"
