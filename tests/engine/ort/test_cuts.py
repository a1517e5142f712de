"""What crosses a cut of a graph computes the rest; weights do not cross; bodies read what is outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from lira_engine.ort.cuts import Cuts
from lira_engine.ort.plain_reference import PlainReference

FEEDS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """x -> a -> b -> y with two branches, a weight behind a Cast, a dead end, and a Scan that reads `a`."""
    lines = [
        "half = Cast<to = 1>(w)",
        "a = MatMul(x, half)",
        "dead = Neg(a)",
        "b, c = Split<axis = 1, num_outputs = 2>(a)",
        "d = Mul(b, c)",
        "e = Add(d, bias)",
    ]
    nodes = [onnx.parser.parse_node(line) for line in lines]
    body = helper.make_graph(
        [
            onnx.parser.parse_node("row = ReduceSum<keepdims = 0>(a, axes)"),
            onnx.parser.parse_node("z = Add(part, row)"),
        ],
        "body",
        [helper.make_tensor_value_info("part", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    nodes.append(helper.make_node("Scan", ["e"], ["y"], name="scan", body=body, num_scan_inputs=1))
    for i, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}.{i}"
    made = helper.make_graph(
        nodes,
        "cuts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["S", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("d", TensorProto.FLOAT, None),
        ],
        [
            numpy_helper.from_array(np.linspace(-1, 1, 12, dtype=np.float16).reshape(3, 4), "w"),
            numpy_helper.from_array(np.ones(2, np.float32), "bias"),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    file = tmp_path / "g.onnx"
    onnx.save(model, file, save_as_external_data=True, location="g.onnx.data", size_threshold=50)
    return file


def test_nodes_are_those_that_inputs_reach_and_outputs_need(graph: Path) -> None:
    cuts = Cuts(graph)
    assert [node.op_type for node in cuts.nodes] == ["MatMul", "Split", "Mul", "Add", "Scan"]
    assert cuts.inputs == {"x": ((0, 3), np.float32)} and cuts.outputs == ["y", "d"]
    crossing = [sorted(cuts.crossing(k)) for k in range(6)]
    # `a` is read by the body, `d` is an output
    assert crossing == [[], ["a"], ["a", "b", "c"], ["a", "d"], ["a", "d", "e"], ["d", "y"]]
    assert [cuts.read_by(i) for i in range(5)] == [["x"], ["a"], ["b", "c"], ["d"], ["e", "a"]]
    assert [cuts.made_by(i) for i in range(5)] == [["a"], ["b", "c"], ["d"], ["e"], ["y"]]
    assert cuts.needed_for(["y"], 2, 5) == [2, 3, 4] and cuts.needed_for(["d"], 0, 5) == [0, 1, 2]


def test_what_crosses_a_cut_computes_the_rest(graph: Path) -> None:
    cuts = Cuts(graph)
    reference = PlainReference(cuts, 1)
    expected = reference.values(cuts.outputs, FEEDS)
    for cut in range(1, len(cuts.nodes)):
        crossing = reference.values(cuts.crossing(cut), FEEDS)
        found = reference.values(cuts.outputs, crossing)  # without the graph's input
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    with cuts.written(["e"], {"d": expected["d"]}) as (file, fed):
        assert [node.op_type for node in onnx.load(file).graph.node] == ["Add"] and list(fed) == ["d"]
    assert sorted(path.name for path in graph.parent.iterdir()) == ["g.onnx", "g.onnx.data"]


def test_types_are_written_for_readers_that_do_not_infer_them(graph: Path) -> None:
    cuts = Cuts(graph)
    with cuts.written(["b"], FEEDS, {"b": np.dtype(np.float32)}) as (file, _):
        (output,) = onnx.load(file).graph.output
        assert output.type.tensor_type.elem_type == TensorProto.FLOAT
