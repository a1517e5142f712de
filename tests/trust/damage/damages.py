"""Damage one graph, array or JSON file of a bundle, as an accident, a faulty tool or a hostile hand would."""

from __future__ import annotations

import io
import json
import random
import zipfile
from typing import Any

import numpy as np
import onnx

Damaged = tuple[bytes, str]
"""The file's new content, and what was done to it."""

_ODD = ("", "\x00", "nothing", "a" * 5000, "é\n[31m", "../x")
_OPERATORS = (
    "MatMul", "Add", "Reshape", "Cast", "Loop", "If", "Gather", "Softmax", "Nope", "", "Concat", "Split",
)  # fmt: skip
_NUMBERS = (0, -1, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**62, -(2**63), 60_000, 1_000_000_000)


def bytes_of(rng: random.Random, data: bytes) -> Damaged:
    """Change bytes, cut the file, or add to it."""
    how = rng.randrange(5)
    if how == 0:
        end = rng.randrange(len(data))
        return data[:end], f"cut at {end}"
    if how == 1:
        return data + rng.randbytes(rng.randrange(1, 64)), "bytes added"
    if how == 2:
        at = rng.randrange(len(data))
        return data[:at] + rng.randbytes(8) + data[at:], f"bytes put in at {at}"
    changed = bytearray(data)
    end = min(len(data), 400 if how == 3 else len(data))
    where = [rng.randrange(end) for _ in range(rng.choice((1, 4, 32)))]
    for at in where:
        changed[at] = rng.randrange(256)
    return bytes(changed), f"{len(where)} bytes changed, the first at {where[0]}"


def graph_of(rng: random.Random, data: bytes) -> Damaged:
    """Edit an ONNX file; it stays a protobuf message."""
    if rng.random() < 0.15:
        return bytes_of(rng, data)
    model = onnx.ModelProto()
    model.ParseFromString(data)
    said = rng.choice(_GRAPH_EDITS)(rng, model)
    return model.SerializeToString(), said


def _nodes(rng: random.Random, model: onnx.ModelProto) -> Any:
    if model.functions and rng.random() < 0.15:
        return rng.choice(model.functions).node
    return model.graph.node


def _remove_node(rng: random.Random, model: onnx.ModelProto) -> str:
    nodes = _nodes(rng, model)
    at = rng.randrange(len(nodes))
    name = nodes[at].op_type
    del nodes[at]
    return f"node {at} ({name}) removed"


def _swap_nodes(rng: random.Random, model: onnx.ModelProto) -> str:
    nodes = _nodes(rng, model)
    a, b = rng.randrange(len(nodes)), rng.randrange(len(nodes))
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(nodes[a])
    second.CopyFrom(nodes[b])
    nodes[a].CopyFrom(second)
    nodes[b].CopyFrom(first)
    return f"nodes {a} and {b} swapped"


def _operator(rng: random.Random, model: onnx.ModelProto) -> str:
    node = rng.choice(_nodes(rng, model))
    before, node.op_type = node.op_type, rng.choice(_OPERATORS)
    return f"{before} is now {node.op_type!r}"


def _domain(rng: random.Random, model: onnx.ModelProto) -> str:
    node = rng.choice(_nodes(rng, model))
    node.domain = rng.choice(("nowhere", "lira", "com.microsoft", "ai.onnx", "\x00"))
    return f"{node.op_type} is of domain {node.domain!r}"


def _node_input(rng: random.Random, model: onnx.ModelProto) -> str:
    node = rng.choice([node for node in _nodes(rng, model) if node.input])
    at = rng.randrange(len(node.input))
    others = [name for other in model.graph.node for name in other.output]
    node.input[at] = rng.choice((*_ODD, rng.choice(others), node.output[0] if node.output else ""))
    return f"input {at} of {node.op_type} is {node.input[at][:20]!r}"


def _drop_input(rng: random.Random, model: onnx.ModelProto) -> str:
    node = rng.choice([node for node in _nodes(rng, model) if node.input])
    del node.input[rng.randrange(len(node.input))]
    return f"an input of {node.op_type} dropped"


def _node_output(rng: random.Random, model: onnx.ModelProto) -> str:
    node = rng.choice(_nodes(rng, model))
    if rng.random() < 0.3:
        del node.output[:]
        return f"{node.op_type} has no outputs"
    others = [name for other in model.graph.node for name in other.output]
    node.output[0] = rng.choice((*_ODD, rng.choice(others)))
    return f"output of {node.op_type} is {node.output[0][:20]!r}"


def _attribute(rng: random.Random, model: onnx.ModelProto) -> str:
    node = rng.choice([node for node in _nodes(rng, model) if node.attribute])
    attribute = rng.choice(node.attribute)
    how = rng.randrange(5)
    if how == 0:
        attribute.name = rng.choice(_ODD)
    elif how == 1:
        attribute.type = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 11))
    elif how == 2:
        node.attribute.remove(attribute)
        return f"an attribute of {node.op_type} removed"
    elif how == 3 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_NUMBERS)
    else:
        attribute.i = rng.choice(_NUMBERS)
        attribute.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    return f"attribute of {node.op_type} changed ({how})"


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    found = list(model.graph.initializer)
    return found + [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]


def _tensor(rng: random.Random, model: onnx.ModelProto) -> str:
    tensor = rng.choice(_tensors(model))
    how = rng.randrange(6)
    if how == 0:
        tensor.data_type = rng.choice((0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 21, 22, 23, 25, 99))
    elif how == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_NUMBERS)
    elif how == 2:
        tensor.dims.append(rng.choice(_NUMBERS))
    elif how == 3:
        tensor.name = rng.choice((*_ODD, rng.choice(_tensors(model)).name))
    elif how == 4:
        tensor.raw_data = rng.randbytes(rng.choice((0, 1, 3, 4, 8, 64)))
    else:
        del tensor.dims[:]
    return f"tensor {tensor.name[:20]!r} changed ({how})"


def _external(rng: random.Random, model: onnx.ModelProto) -> str:
    tensor = rng.choice([tensor for tensor in model.graph.initializer if tensor.external_data])
    entry = rng.choice(tensor.external_data)
    if rng.random() < 0.2:
        tensor.external_data.remove(entry)
        return f"external {entry.key} of {tensor.name} removed"
    entry.value = rng.choice((*map(str, _NUMBERS), "x", "", "1e9", "0x10"))
    return f"external {entry.key} of {tensor.name} is {entry.value!r}"


def _values(rng: random.Random, model: onnx.ModelProto) -> str:
    tensor = rng.choice([tensor for tensor in _tensors(model) if tensor.raw_data] or _tensors(model))
    if tensor.data_type == onnx.TensorProto.FLOAT:
        fill = rng.choice((np.nan, np.inf, 0.0, 1e30))
        tensor.raw_data = np.full(len(tensor.raw_data) // 4, fill, np.float32).tobytes()
    else:
        tensor.raw_data = rng.randbytes(len(tensor.raw_data))
    return f"values of {tensor.name} replaced"


def _border(rng: random.Random, model: onnx.ModelProto) -> str:
    values = rng.choice((model.graph.input, model.graph.output))
    value = rng.choice(values)
    how, before = rng.randrange(5), value.name
    if how == 0:
        value.name = rng.choice(_ODD)
    elif how == 1:
        values.remove(value)
        return f"{before} is no longer an input or output"
    elif how == 2:
        value.type.tensor_type.elem_type = rng.choice((0, 1, 6, 7, 9, 10, 11, 99))
    elif how == 3 and value.type.tensor_type.shape.dim:
        rng.choice(value.type.tensor_type.shape.dim).dim_value = rng.choice(_NUMBERS)
    else:
        value.ClearField("type")
    return f"input or output {before} changed ({how})"


def _opset(rng: random.Random, model: onnx.ModelProto) -> str:
    how = rng.randrange(3)
    if how == 0:
        del model.opset_import[:]
    elif how == 1:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 99, 2**40, -1))
    else:
        rng.choice(model.opset_import).domain = rng.choice(("nowhere", "lira", ""))
    return f"opset changed ({how})"


def _model_field(rng: random.Random, model: onnx.ModelProto) -> str:
    how = rng.randrange(4)
    if how == 0:
        model.ir_version = rng.choice((0, 1, 99, 2**40))
    elif how == 1:
        model.ClearField("graph")
    elif how == 2:
        del model.functions[:]
    else:
        model.graph.name = rng.choice(_ODD)
    return f"the model's fields changed ({how})"


def _function(rng: random.Random, model: onnx.ModelProto) -> str:
    if not model.functions:
        return _operator(rng, model)
    function = rng.choice(model.functions)
    how = rng.randrange(4)
    if how == 0:
        function.name = rng.choice(_ODD)
    elif how == 1 and function.input:
        del function.input[rng.randrange(len(function.input))]
    elif how == 2:
        model.functions.append(function)
    else:
        del function.opset_import[:]
    return f"a function changed ({how})"


_GRAPH_EDITS = (
    _remove_node,
    _swap_nodes,
    _operator,
    _domain,
    _node_input,
    _drop_input,
    _node_output,
    _attribute,
    _attribute,
    _tensor,
    _tensor,
    _external,
    _external,
    _values,
    _border,
    _border,
    _opset,
    _model_field,
    _function,
)


def array_of(rng: random.Random, data: bytes) -> Damaged:
    """Damage a .npy file: its header, its values, or what it is."""
    how = rng.randrange(6)
    if how == 0:
        return bytes_of(rng, data)
    array = np.load(io.BytesIO(data))
    if how == 1:
        return _changed_header(rng, data)
    return _as_npy(_other_array(rng, array)), f"another array ({how})"


def _changed_header(rng: random.Random, data: bytes) -> Damaged:
    size = int.from_bytes(data[8:10], "little")
    header = bytearray(data[10 : 10 + size])
    for _ in range(rng.choice((1, 2, 6))):
        header[rng.randrange(size)] = rng.choice(b"(){}'\",:<>=0123456789fOie\n\\ \x00\xff#")
    return data[:10] + bytes(header) + data[10 + size :], f"header is {bytes(header).strip()[:60]!r}"


def _other_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    how = rng.randrange(8)
    if how == 0:
        kinds = ("f8", "f2", "i4", "i8", "?", "c8", "U4", "S3", "M8[s]", ">f4")
        return array.astype(rng.choice(kinds))
    if how == 1:
        return array[..., :-1] if array.ndim else array[None]
    if how == 2:
        return array.reshape(-1)[: rng.randrange(array.size + 1)]
    if how == 3:
        return np.zeros((0, 3), array.dtype)
    if how == 4:
        return np.array(rng.choice((0, 1.5, float("nan"), -1)))
    if how == 5:
        return np.full(array.shape, rng.choice((np.nan, np.inf, 1e30, 0)), np.float32)
    if how == 6:
        return np.zeros(3, [("a", "f4"), ("b", "i8")])
    return np.asfortranarray(np.concatenate([array, array])) if array.ndim else array


def _as_npy(array: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


def archive_of(rng: random.Random, data: bytes) -> Damaged:
    """Damage a .npz file: the archive, one of its arrays, or their names."""
    how = rng.randrange(7)
    if how == 0:
        return bytes_of(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    packing = zipfile.ZIP_STORED
    said = f"{name}: "
    if how == 1:
        names = ("in.x.npy", "out.x.npy", "noise.x.npy", "margin.x.npy", "x", "a/b.npy")
        members[rng.choice(names)] = members.pop(name)
        said += "renamed"
    elif how == 2:
        del members[name]
        said += "removed"
    elif how == 3:
        members[name] = rng.randbytes(rng.randrange(40))
        said += "no array"
    elif how == 4:
        packing = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        said += "packed, "
    else:
        members[name], done = array_of(rng, members[name])
        said += done
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as archive:
        for one, content in members.items():
            archive.writestr(one, content)
    if how == 4:
        content, done = bytes_of(rng, made.getvalue())
        return content, said + done
    return made.getvalue(), said


def json_of(rng: random.Random, data: bytes) -> Damaged:
    """Replace, remove or add one value of a JSON object, wherever it is; the file stays JSON."""
    if rng.random() < 0.08:
        return bytes_of(rng, data)
    tree = json.loads(data)
    places: list[tuple[Any, Any, str]] = []
    _places(tree, "", places)
    inside, key, where = rng.choice(places)
    how = rng.random()
    if how < 0.12:
        del inside[key]
        said = f"{where} removed"
    elif how < 0.18 and isinstance(inside, dict):
        inside[rng.choice(_ODD)] = inside[key]
        said = f"a key added beside {where}"
    else:
        inside[key] = _other_value(rng, inside[key])
        said = f"{where} is {json.dumps(inside[key])[:40]}"
    return json.dumps(tree).encode(), said


def _places(tree: Any, where: str, found: list[tuple[Any, Any, str]]) -> None:
    """List values, each with what it is in. Of lists of numbers, and of hashes, a few."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if where in ("/provenance",) and len(found) % 7:
            continue
        found.append((tree, key, f"{where}/{key}"))
        if isinstance(value, (dict, list)):
            _places(value, f"{where}/{key}", found)


def _other_value(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.4:
        return rng.choice((None, True, [], {}, [1, 2], {"a": 1}, *_ODD, *_NUMBERS, 0.5, -0.0, 1e308))
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice((0, -value, value + 1, value * 2, value * 1000, value // 2, 1e-300, *_NUMBERS))
    if isinstance(value, list):
        return rng.choice(([], value[:-1], value + value, value[::-1], value * 1000, [value]))
    if isinstance(value, dict):
        return rng.choice(({}, dict(list(value.items())[:-1])))
    if value is None:
        return rng.choice((0, "", [], {}))
    return rng.choice((value[:-1], value + "x", value.upper(), "", value * 100))
