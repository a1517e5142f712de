"""External data of ONNX files: write weights beside a graph, and list the files that a graph reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

from lira_engine.errors import LiraError

EXTERNAL_FROM_BYTES = 1024


def external_locations(path: Path) -> set[str]:
    """Return the external data files of an ONNX file, as it names them, without opening them.

    Raises LiraError if `path` is not an ONNX file.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise LiraError(f"{path} is not an ONNX file: {str(error).splitlines()[0]}") from error
    found: set[str] = set()
    _scan_graph(model.graph, found)
    for function in model.functions:
        _scan_nodes(function.node, found)
    for training in model.training_info:
        _scan_graph(training.initialization, found)
        _scan_graph(training.algorithm, found)
    return found


def _scan_graph(graph: onnx.GraphProto, found: set[str]) -> None:
    _scan_tensors(graph.initializer, found)
    for sparse in graph.sparse_initializer:
        _scan_tensors((sparse.values, sparse.indices), found)
    _scan_nodes(graph.node, found)


def _scan_nodes(nodes: Iterable[onnx.NodeProto], found: set[str]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            _scan_tensors((attribute.t, *attribute.tensors), found)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                _scan_tensors((sparse.values, sparse.indices), found)
            for graph in (attribute.g, *attribute.graphs):
                _scan_graph(graph, found)


def _scan_tensors(tensors: Iterable[onnx.TensorProto], found: set[str]) -> None:
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            # A tensor without a location yields the empty name, which is refused like any foreign one.
            found.add(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))


def save_graph(model: ir.Model, file: Path, written: Callable[[int], None] = lambda offset: None) -> None:
    """Write a graph, and its weights into FILE.data beside it, to be memory-mapped; small ones stay in the
    graph. Lazy weights are computed one at a time; `written` gets the bytes written before each.

    Raises LiraError if the weights were not written whole: numpy, which writes them, gives no reason if the
    disk is full, and raises nothing if only the last few bytes are lost.
    """
    data, expected = file.with_name(f"{file.name}.data"), 0

    def starts(tensor: ir.TensorProtocol, offset: int) -> None:
        nonlocal expected
        expected = max(expected, offset + tensor.nbytes)
        written(offset)

    reason = ""
    try:
        ir.save(
            model,
            file,
            external_data=data.name,
            size_threshold_bytes=EXTERNAL_FROM_BYTES,
            max_workers=1,  # each worker holds a tensor in memory
            callback=lambda tensor, info: starts(tensor, info.offset),
        )
    except OSError as error:
        if error.errno is not None:
            raise
        reason = f" ({error})"
    if reason or (expected and data.stat().st_size < expected):
        raise LiraError(f"{data} was not written whole{reason}: free some room on its disk")
