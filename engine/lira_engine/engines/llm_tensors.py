"""Names of the language model's tensors and files that builders and runners share."""

from __future__ import annotations

LM_HEAD = "lm_head"
"""The weight that maps hidden states to logits."""


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
