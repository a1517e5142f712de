"""Names of the language model's tensors: its caches and its LM head."""

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
