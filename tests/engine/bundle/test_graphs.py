"""Portable graphs are read as they are, and damaged ones are refused in one line before they are lowered."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lira_engine.bundle.external_data import save_graph
from lira_engine.bundle.graphs import external_locations, read_graph
from lira_engine.errors import LiraError


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = x @ w + b in a file, with w beside it and b inside."""
    w = np.arange(1024, dtype=np.float32).reshape(32, 32)
    b = np.ones(32, np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"], name="n"),
    ]
    weights = [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(b, "b")]
    made = helper.make_graph(nodes, "toy", [x], [y], weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_graph(ir.from_proto(model), tmp_path / "toy.onnx")
    return tmp_path / "toy.onnx"


def test_weights_are_those_of_the_file(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(graph.parent)
    for path in (graph, Path("toy.onnx")):
        weights = read_graph(path).graph.initializers
        np.testing.assert_array_equal(
            weights["w"].const_value.numpy(), np.arange(1024, dtype=np.float32).reshape(32, 32)
        )
        assert weights["b"].const_value.numpy().sum() == 32


def test_files_with_several_links_are_read(graph: Path, tmp_path: Path) -> None:
    """Copies by `cp -l` and rsync's --link-dest, caches, layers of images."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("toy.onnx", "toy.onnx.data"):
        os.link(graph.with_name(name), copy / name)
    assert os.stat(copy / "toy.onnx.data").st_nlink == 2
    assert read_graph(copy / "toy.onnx").graph.initializers["w"].const_value.numpy()[31, 31] == 1023
    save_graph(read_graph(copy / "toy.onnx"), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == graph.with_name("toy.onnx.data").read_bytes()


def _no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def _no_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nothing"


def _no_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nothing"


def _odd_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def _no_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 0


def _short_raw(model: onnx.ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if not one.external_data)
    tensor.raw_data = b"1234"


def _negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -1


def _huge(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 40


def _unknown(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Nope"


def _no_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(helper.make_node("Cast", ["m"], ["y"]))


def _odd_key(model: onnx.ModelProto) -> None:
    next(one for one in model.graph.initializer if one.external_data).external_data.add(key="odd", value="1")


def _other_field(model: onnx.ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if one.HasField("raw_data"))
    tensor.ClearField("raw_data")
    tensor.int32_data.append(1)


def _external(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def damage(model: onnx.ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.external_data)
        next(entry for entry in tensor.external_data if entry.key == key).value = value

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _no_opset, _no_input, _no_output, _odd_type, _no_type, _short_raw, _negative, _huge, _unknown,
        _no_attribute, _odd_key, _other_field,
        _external("offset", "64"), _external("offset", "-4"), _external("offset", "x"),
        _external("length", "8"), _external("length", str(1 << 40)), _external("location", "other.data"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused(
    graph: Path, damage: Callable[[onnx.ModelProto], None], capfd: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(graph, load_external_data=False)
    damage(model)
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(LiraError, match=r"toy\.onnx is damaged \(.+\); copy the bundle again") as error:
        read_graph(graph)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert capfd.readouterr() == ("", "")


def test_what_is_no_graph_is_refused(graph: Path) -> None:
    graph.write_bytes(b"\xff" * 100)
    for read in (read_graph, external_locations):
        with pytest.raises(LiraError, match=r"toy\.onnx is not an ONNX file \(.+\); copy the bundle again"):
            read(graph)


def test_names_that_are_no_text_are_refused(graph: Path) -> None:
    """onnx-ir would fail when it writes them, a path of bytes when it is joined."""
    whole = graph.read_bytes()
    for name in (b"toy.onnx.data", b"MatMul"):
        assert name in whole
        graph.write_bytes(whole.replace(name, b"\x9b" + name[1:]))
        for read in (read_graph, external_locations):
            with pytest.raises(LiraError, match=r"toy\.onnx is not an ONNX file \(a name in it is not UTF-8"):
                read(graph)


def _body(node: onnx.NodeProto) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])
    return helper.make_graph([node], "body", [value], [value])


def _scan(name: str, inner: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node("Scan", ["x"], ["s"], name, body=_body(inner), num_scan_inputs=1)


def _function(name: str, calls: str) -> onnx.FunctionProto:
    called = helper.make_node(calls, ["a"], ["c"], domain="lira" if calls != "Neg" else "")
    return helper.make_function("lira", name, ["a"], ["c"], [called], [helper.make_opsetid("", 21)])


def test_what_could_run_without_end_is_refused(graph: Path) -> None:
    """A loop's end is computed, functions that call each other are written out 2^n times. A Scan's end is the
    size of a tensor: builds write such."""
    whole = onnx.load(graph, load_external_data=False)
    loop = helper.make_node(
        "Loop", ["x"], ["l"], "endless", body=_body(helper.make_node("Neg", ["v"], ["v"]))
    )
    within = _scan("outer", _scan("inner", helper.make_node("Neg", ["v"], ["v"])))
    for nodes, functions, says in (
        ([loop], [], r"has a Loop \(node 'endless'\)"),
        ([_scan("outer", loop)], [], "has a Loop"),
        ([within], [], "has a body inside a body"),
        ([], [_function("f", "g"), _function("g", "f")], "has a function that calls another one"),
        ([_scan("outer", helper.make_node("Neg", ["v"], ["v"]))], [_function("f", "Neg")], ""),
    ):
        model = onnx.ModelProto()
        model.CopyFrom(whole)
        model.graph.node.extend(nodes)
        model.functions.extend(functions)
        graph.write_bytes(model.SerializeToString())
        if not says:
            assert external_locations(graph) == {"toy.onnx.data"}
            continue
        with pytest.raises(LiraError, match=f"{says}.*, which no graph of ours has; copy the bundle again"):
            external_locations(graph)


def test_locations_are_found_wherever_a_tensor_is(graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    for number, tensors in enumerate(
        (
            model.graph.initializer.add(),
            model.graph.sparse_initializer.add().values,
            model.graph.node[0].attribute.add(name="t").t,
            model.graph.node[0].attribute.add(name="many").tensors.add(),
            model.graph.node[0].attribute.add(name="sparse").sparse_tensor.indices,
            model.graph.node[0].attribute.add(name="body").g.initializer.add(),
            model.functions.add(name="f").node.add(op_type="Neg").attribute.add(name="t").t,
            model.training_info.add().algorithm.initializer.add(),
        )
    ):
        tensors.external_data.add(key="location", value=f"{number}.data")
    graph.write_bytes(model.SerializeToString())
    assert external_locations(graph) == {"toy.onnx.data", *(f"{number}.data" for number in range(8))}


def test_a_bundle_of_links_builds(nano_bundle: Path, tmp_path: Path) -> None:
    from lira_engine.build import build

    copy = tmp_path / "bundle"
    shutil.copytree(nano_bundle, copy, ignore=shutil.ignore_patterns("engines"))
    linked = tmp_path / "linked"
    shutil.copytree(copy, linked, copy_function=os.link)
    folder = build(linked)
    assert (folder / "llm.onnx.data").stat().st_size > 0 and os.stat(linked / "llm.onnx.data").st_nlink == 2


def test_a_location_that_is_not_utf_8_is_refused(graph: Path) -> None:
    """protobuf gives bytes for it."""
    content = graph.read_bytes()
    assert b"toy.onnx.data" in content
    graph.write_bytes(content.replace(b"toy.onnx.data", b"toy.onnx\xffdata"))
    with pytest.raises(LiraError, match="a name in it is not UTF-8"):
        external_locations(graph)
