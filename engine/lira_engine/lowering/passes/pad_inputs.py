"""The inputs of a matmul are filled up to whole blocks."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from lira_engine.lowering.nodes import constant_vector
from lira_engine.lowering.weights import ConstantMatMul, append_zeros, constant_matmuls

Block = Callable[[str], int | None]
"""Name of a weight -> of what its inputs should be a multiple; None leaves it as it is."""


class PadInputs(ir.passes.InPlacePass):
    """Zeros that change no sum: TensorRT's blocks divide the inputs of a weight, ONNX Runtime's need not.

    Requires: a chosen weight whose inputs are no multiple of its block is read by matmuls alone, on the
        right, or by a Cast of which that holds; the rank of their left operands is known.
    Does: puts `Pad` on the last axis before each `MatMul` with such an initializer [K, N], and rows of zeros
        below it. It keeps its name and type; the zeros are added when it is read. They need opset 13 (not
        checked).
    Ensures: the inputs of each chosen weight are a multiple of its block.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def requires(self, model: ir.Model) -> None:
        for matmul, _ in self._chosen(model):
            left, right = matmul.node.inputs
            weight = model.graph.initializers[matmul.name]
            if left is None or left.shape is None:
                raise ir.passes.PreconditionError(f"{matmul.node.name}: the rank of its input is not known")
            for value in {weight, right}:
                for use in value.uses() if value is not None else ():
                    casts = value is weight and right is not weight and use.node is right.producer()  # type: ignore[union-attr]
                    if not casts and (use.node.op_type, use.idx) != ("MatMul", 1):
                        raise ir.passes.PreconditionError(
                            f"{use.node.name} reads {matmul.name}, which is to be padded"
                        )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        for matmul, rows in chosen:
            _pad_left(model.graph, matmul, rows)
        for name, rows in {matmul.name: rows for matmul, rows in chosen}.items():
            _pad_weight(model.graph.initializers[name], rows)
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        for matmul, _ in self._chosen(model):
            raise ir.passes.PostconditionError(f"{matmul.name} was not padded")

    def _chosen(self, model: ir.Model) -> list[tuple[ConstantMatMul, int]]:
        """Return the matmuls to change, and how many rows their weights lack."""
        blocks = [(matmul, self.block(matmul.name)) for matmul in constant_matmuls(model.graph)]
        lacks = [(matmul, -matmul.inputs % block) for matmul, block in blocks if block is not None]
        return [(matmul, rows) for matmul, rows in lacks if rows]


def _pad_left(graph: ir.Graph, matmul: ConstantMatMul, rows: int) -> None:
    left, name = matmul.node.inputs[0], f"{matmul.node.name}.filled"
    assert left is not None and left.shape is not None
    tape = ir.tape.Tape()
    edges = constant_vector(tape, [0] * (2 * len(left.shape) - 1) + [rows])
    padded = tape.op("Pad", [left, edges])
    edges.name, padded.name = f"{name}.edges", name
    if left.dtype is not None:
        padded.dtype = left.dtype
    padded.shape = ir.Shape([*list(left.shape)[:-1], matmul.inputs + rows])
    for node in tape.nodes:
        node.name = f"{node.outputs[0].name}/{node.op_type}"
    graph.insert_before(matmul.node, tape.nodes)
    matmul.node.replace_input_with(0, padded)


def _pad_weight(weight: ir.Value, rows: int) -> None:
    append_zeros(weight, rows)
    for use in weight.uses():
        if use.node.op_type == "Cast":
            use.node.outputs[0].shape = weight.shape
