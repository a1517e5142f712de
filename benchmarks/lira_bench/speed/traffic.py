"""Bytes that a decode step reads: the language model's weights once, and the filled rows of its cache."""

from __future__ import annotations

from pathlib import Path

import onnx

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import ModelSpec
from lira_engine.engines.llm_tensors import is_cache_input
from lira_engine.engines.record import read_build
from lira_engine.targets import target_named

# Tables over all positions; a step reads one row.
_TABLES = ("cos_cache", "sin_cache")


def llm_file(bundle: Bundle, target: str, precision: str) -> Path:
    """Return the file of the language model: an ONNX graph or a TensorRT engine."""
    if target == "portable":
        return bundle.stage_file("llm")
    return bundle.engine_folder(target, precision) / target_named(target).file("llm")


def weight_bytes(graph: Path) -> int:
    """Return the bytes of all weights as stored: packed, with their scales. Reads no weight data.

    Portable graphs store fp16, which ONNX Runtime widens when it opens them. A TensorRT engine counts whole:
    all but some kilobytes are weights.
    """
    if graph.suffix == ".engine":
        return graph.stat().st_size
    model = onnx.load(graph, load_external_data=False)
    return sum(_size(tensor) for tensor in model.graph.initializer if tensor.name not in _TABLES)


def cache_bytes(graph: Path, spec: ModelSpec, rows: float) -> float:
    """Return the bytes of the keys and values of `rows` cache rows, as a decode step reads them: those of the
    graph's cache. Raises LiraError if the record of a TensorRT engine cannot be read."""
    return rows * spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * _cache_item(graph)


def _cache_item(graph: Path) -> int:
    """Return the bytes of a number in the cache."""
    if graph.suffix == ".engine":
        # What lowering.tensorrt makes; an engine that differs from it does not open.
        return 4 if _precision(graph) == "fp32" else 2
    inputs = onnx.load(graph, load_external_data=False).graph.input
    kind = next(one.type.tensor_type.elem_type for one in inputs if is_cache_input(one.name))
    return onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def _precision(engine: Path) -> str:
    """Return the precision of the language model in a TensorRT engine's build."""
    return read_build(engine.parent, "build the engines again").precisions["llm"]


def _size(tensor: onnx.TensorProto) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return len(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).nbytes
