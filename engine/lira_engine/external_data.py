"""Which other files an ONNX file reads its tensors from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from lira_engine.errors import LiraError


def external_locations(path: Path) -> set[str]:
    """The files that an ONNX file keeps tensors in, as it names them. Loads no tensor and opens none of them.

    Raises LiraError where `path` is not an ONNX file.
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
            # Without a location nothing can be read: the empty name is then refused like any foreign one.
            found.add(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))
