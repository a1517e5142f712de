"""Matmuls with constant weights become 8-bit ones with a scale for each row of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, replace_node
from lira_engine.lowering.weights import (
    ConstantMatMul,
    constant_matmuls,
    ensure_replaced,
    initializer_once,
    rounded,
)

COLUMNS = 256
"""Columns of a weight that lie together. ONNX Runtime packs a weight that is an input in each run, and reads
16 columns at a time: 2 GB/s from rows of 256 bytes, 0.2 GB/s from rows of 4,096."""
INT8, UINT8, FLOAT = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT


class QuantizeRows(ir.passes.InPlacePass):
    """8-bit weights with a scale per output; 8-bit activations with a scale per row.

    For passes of many rows. A few rows with huge values cost the others no accuracy, since each row has its
    scale. Unsigned activations: CPUs multiply them by signed integers up to 20 times faster than signed ones.

    Requires: nothing.
    Does: replaces each `MatMul` with an initializer [K, N], or a Cast of one, on the right that `choose`
        wants by `com.microsoft.MatMulIntegerToFloat`, one for every `COLUMNS` columns. Matmuls of one input
        round it once. Weights are rounded when the file is written, some columns at a time.
    Ensures: no such matmul is left.
    """

    def __init__(self, choose: Callable[[str], bool]) -> None:
        super().__init__()
        self.choose = choose

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        inputs = _Inputs(model.graph) if chosen else None
        for matmul in chosen:
            assert inputs is not None
            _replace(model.graph, matmul, inputs)
            model.graph.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced(self._chosen(model))

    def _chosen(self, model: ir.Model) -> list[ConstantMatMul]:
        return [one for one in constant_matmuls(model.graph) if self.choose(one.name)]


class _Inputs:
    """The rounded inputs of matmuls, each once: integers [..., K] uint8 and their step [..., 1]."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._found: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        constants: dict[str, np.ndarray] = {
            "one": np.array(1, np.float32),
            "zero": np.array(128, np.uint8),
            "step": np.array(1 / 127, np.float32),
            "least": np.array(np.finfo(np.float32).tiny * 128, np.float32),
            "last": np.array([-1], np.int64),
        }
        self.constants = {name: _constant(graph, f"rounded.{name}", x) for name, x in constants.items()}

    def rounded(self, x: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value]:
        if x not in self._found:
            self._found[x] = self._round(x, before)
        return self._found[x]

    def _round(self, x: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value]:
        tape, c = ir.tape.Tape(), self.constants
        high, low = (tape.op(op, [x, c["last"]], {"keepdims": 1}) for op in ("ReduceMax", "ReduceMin"))
        largest = tape.op("Max", [high, tape.op("Neg", [low]), c["least"]])
        step = tape.op("Mul", [largest, c["step"]])
        integers = tape.op("QuantizeLinear", [tape.op("Div", [x, step]), c["one"], c["zero"]])
        integers.type = ir.TensorType(UINT8)
        self._graph.insert_before(before, tape.nodes)
        return integers, step


def _replace(graph: ir.Graph, matmul: ConstantMatMul, inputs: _Inputs) -> None:
    x = matmul.node.inputs[0]
    assert x is not None
    integers, step = inputs.rounded(x, matmul.node)
    c, tape, shape = inputs.constants, ir.tape.Tape(), x.shape
    parts = []
    for i, some in enumerate(column_blocks(matmul.outputs)):
        name, width = f"{matmul.name}.q8.{i}", some.stop - some.start
        weight = initializer_once(
            graph, name, INT8, (matmul.inputs, width), partial(_integers, matmul.weight, some)
        )
        scales = initializer_once(
            graph, f"{name}.scales", FLOAT, (width,), partial(_scales, matmul.weight, some)
        )
        product = tape.op(
            "MatMulIntegerToFloat",
            [integers, weight, c["one"], scales, c["zero"]],
            domain=CONTRIB,
        )
        part = tape.op("Mul", [product, step])
        part.type = ir.TensorType(FLOAT)
        part.shape = ir.Shape([*shape[:-1], width]) if shape is not None else None
        parts.append(part)
    whole = parts[0] if len(parts) == 1 else tape.op("Concat", parts, {"axis": -1}, name=matmul.node.name)
    replace_node(graph, matmul.node, list(tape.nodes), [whole])


def column_blocks(columns: int) -> Iterator[slice]:
    """Yield the blocks of columns that lie together."""
    for start in range(0, columns, COLUMNS):
        yield slice(start, min(start + COLUMNS, columns))


def _integers(stored: ir.TensorProtocol, some: slice) -> np.ndarray:
    return rounded(stored)[0][:, some]


def _scales(stored: ir.TensorProtocol, some: slice) -> np.ndarray:
    return rounded(stored)[1][some]


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
