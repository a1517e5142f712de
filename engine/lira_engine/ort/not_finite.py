"""Find the first tensor of a graph that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lira_engine.engines.llm_tensors import is_cache_input, with_lengths
from lira_engine.errors import LiraError
from lira_engine.ort.cuts import Cuts
from lira_engine.ort.package import ORT_ERRORS
from lira_engine.ort.session import open_session

_AT_ONCE = 64
"""Intermediate values that one run returns: all of a large stage would not fit into memory."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def first_not_finite(graph: Path, feeds: Mapping[str, np.ndarray]) -> str | None:
    """Return the first value, in the order of the graph's nodes, that is not finite if ONNX Runtime runs an
    ONNX file on `feeds`, and the operator that computes it: "layers.3.mlp.up (Gelu)". None if all are finite,
    or the graph does not run so.

    Caches of a language model that are not fed are empty. Negative infinities do not count in a graph that
    has them as constants: it masks with them.
    """
    model = ir.load(graph)
    fed = _complete(model, feeds)
    constants = [ir.convenience.get_const_tensor(node.outputs[0]) for node in model.graph if _constant(node)]
    constants += [value.const_value for value in model.graph.initializers.values()]
    masks = any(map(_has_infinity, constants))
    values = [value for node in model.graph if not _constant(node) for value in node.outputs if value.name]
    values = [value for value in values if value.dtype is None or value.dtype in _FLOATS]
    cuts = Cuts(graph)
    for start in range(0, len(values), _AT_ONCE):
        group = values[start : start + _AT_ONCE]
        found = _outputs(cuts, [str(value.name) for value in group], fed)
        for value, array in zip(group, found, strict=True):
            if array is not None and _wrong(array, masks):
                node = value.producer()
                operator = f" ({node.op_type})" if node is not None else ""
                return f"{value.name}{operator}"
    return None


def _wrong(array: np.ndarray, masks: bool) -> bool:
    if not np.issubdtype(array.dtype, np.floating) or np.isfinite(array).all():
        return False
    return not masks or bool(np.isnan(array).any() or np.isposinf(array).any())


def _constant(node: ir.Node) -> bool:
    return node.op_type == "Constant"


def _has_infinity(tensor: ir.TensorProtocol | None) -> bool:
    if tensor is None or tensor.dtype not in _FLOATS or tensor.size > 1 << 20:
        return False
    return bool(np.isneginf(tensor.numpy()).any())


def _complete(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the graph's inputs: those of `feeds`, and empty caches for those that it lacks."""
    found = {}
    feeds = with_lengths(feeds, {str(value.name) for value in model.graph.inputs})
    for value in model.graph.inputs:
        name = str(value.name)
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        if name in feeds:
            found[name] = feeds[name].astype(dtype, copy=False)
        elif is_cache_input(name) and value.shape is not None:
            found[name] = np.zeros([size for size in value.shape if isinstance(size, int)], dtype)
    return found


def _outputs(cuts: Cuts, names: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray | None]:
    """Return tensors of a run; ONNX Runtime leaves out what they do not need."""
    with cuts.written(names, feeds) as (file, fed):
        try:
            return list(open_session(file).run(names, fed))
        except (LiraError, *ORT_ERRORS):
            return [None] * len(names)
