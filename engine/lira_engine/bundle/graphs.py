"""Read ONNX files of others: what is damaged is told before anything is made of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message
from onnx import helper
from onnx.checker import ValidationError, check_model
from onnx.shape_inference import InferenceError

from lira_engine.bundle.manifest import MEND
from lira_engine.errors import LiraError


def external_locations(path: Path) -> set[str]:
    """Return the external data files of an ONNX file, as it names them, without opening them.

    Raises LiraError if `path` is not an ONNX file, or may run without end (see `_check_bounded`).
    """
    model = _parsed(path, MEND)
    _check_bounded(path, model)
    found: set[str] = set()
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            # A tensor without a location yields the empty name, which is refused like any foreign one.
            found.add(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))
    return found


def read_graph(file: Path, mend: str = MEND) -> ir.Model:
    """Return the model in an ONNX file whose external data are confined (bundle.integrity). Weights are read,
    by mapping, when they are asked for.

    Raises LiraError, which ends with `mend`, if the graph is not valid, or a weight is not whole.
    """
    model = _parsed(file, mend)
    try:
        for tensor in _tensors(model):
            _check_whole(file, tensor)
        check_model(_without_weights(file, model), full_check=True)
        _place_weights(file, model)
        return ir.from_proto(model)
    except (OSError, ValidationError, InferenceError, ir.serde.SerdeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LiraError(f"{file} is damaged ({reason[:200]}); {mend}") from error


def _parsed(path: Path, mend: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise LiraError(f"{path} is not an ONNX file ({' '.join(str(error).split())}); {mend}") from None
    if not _is_text(model):
        raise LiraError(f"{path} is not an ONNX file (a name in it is not UTF-8); {mend}")
    return model


def _is_text(message: Message) -> bool:
    """Return whether all texts in a message are: protobuf reads others as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            texts = [value] if isinstance(value, (str, bytes)) else value
            if any(isinstance(text, bytes) for text in texts):
                return False
        elif field.type == field.TYPE_MESSAGE:
            inner = [value] if isinstance(value, Message) else value
            if not all(map(_is_text, inner)):
                return False
    return True


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors of a model, wherever they are."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        for graph in graphs:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        attributes = [attribute for node in nodes for attribute in node.attribute]
        for attribute in attributes:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse_tensors = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in (*sparse_tensors, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        graphs, nodes = [graph for one in attributes for graph in _bodies(one)], []


def _bodies(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _check_bounded(path: Path, model: onnx.ModelProto) -> None:
    """Raises LiraError for what lets a small graph run without end, and none of ours has: a loop whose end is
    computed, a body inside a body, and functions that call functions, which runtimes write out."""
    functions = {(function.domain, function.name) for function in model.functions}
    called = [node for function in model.functions for node in function.node]
    for node in called:
        if (node.domain, node.op_type) in functions:
            _refuse(path, node, "a function that calls another one")
    within = [body for node in (*model.graph.node, *called) for body in _all_bodies([node])]
    for node in (*model.graph.node, *called, *(node for body in within for node in body.node)):
        if node.op_type == "Loop":
            _refuse(path, node, "a Loop")
    for body in within:
        if any(_all_bodies(body.node)):
            _refuse(path, body.node[0], "a body inside a body")


def _all_bodies(nodes: Iterable[onnx.NodeProto]) -> list[onnx.GraphProto]:
    return [body for node in nodes for attribute in node.attribute for body in _bodies(attribute)]


def _refuse(path: Path, node: onnx.NodeProto, what: str) -> None:
    raise LiraError(f"{path} has {what} (node {node.name!r}), which no graph of ours has; {MEND}")


def _check_whole(file: Path, tensor: onnx.TensorProto) -> None:
    """Raises ValueError if a tensor has other bytes than its shape needs."""
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f"tensor {tensor.name!r} has the shape {list(tensor.dims)}")
    try:
        needed = -(-math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth // 8)
        field = helper.tensor_dtype_to_field(tensor.data_type)
    except (TypeError, KeyError):  # of text, undefined, or of a newer onnx
        raise ValueError(f"tensor {tensor.name!r} has the type {tensor.data_type}") from None
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
            raise ValueError(f"tensor {tensor.name!r} has {len(tensor.raw_data)} bytes, expected {needed}")
        filled = {one.name for one, _ in tensor.ListFields() if one.name.endswith("_data")}
        if not filled <= {"raw_data", field}:
            raise ValueError(f"tensor {tensor.name!r} has {', '.join(sorted(filled))}, expected {field}")
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if entries.keys() - {"location", "offset", "length"}:
        raise ValueError(f"tensor {tensor.name!r} has external data with the keys {sorted(entries)}")
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    there = os.stat(file.parent / entries.get("location", "")).st_size
    if offset < 0 or length != needed or offset + length > there:
        raise ValueError(
            f"tensor {tensor.name!r} needs {needed} bytes and is {length} at {offset} of a file of {there}"
        )


def _without_weights(file: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with weights as inputs, and constants in it: the check would look for their files, and
    refuses those with several links."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inputs = {value.name for value in copy.graph.input}
    for tensor in copy.graph.initializer:
        if tensor.name not in inputs:
            copy.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    del copy.graph.initializer[:]
    for tensor in _tensors(copy):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            with open(file.parent / entries["location"], "rb") as data:
                data.seek(int(entries.get("offset", 0)))
                tensor.raw_data = data.read(int(entries.get("length", -1)))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return copy


def _place_weights(file: Path, model: onnx.ModelProto) -> None:
    """Name external data by full paths.

    onnx-ir confines relative ones once more, and refuses files with several links: somebody may have linked
    a secret into the folder. Ours are confined, and listed with their SHA-256, which says what is in them.
    """
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = os.path.abspath(file.parent / entry.value)
