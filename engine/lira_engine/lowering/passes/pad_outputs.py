"""The outputs of a 4-bit matmul are filled up to what CUDA's kernels take."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, constant_vector, nodes_of, replace_node
from lira_engine.lowering.weights import append_zeros

TAKEN = 8
"""Outputs that a block of threads computes from 4-bit weights: other matmuls write their weight out in fp16
(TryMatMul4Bits in ONNX Runtime 1.31, contrib_ops/cuda/quantization/matmul_4bits.cu)."""
FUSED = 64
"""Outputs of which a fused matmul of any number of rows wants a multiple (matmul_nbits.cc, there)."""


class PadOutputs(ir.passes.InPlacePass):
    """Zeros that are cut off again: LIRA's vocabularies are no multiple of 8, and its LM head is the largest
    matmul of a decode step.

    Requires: a `com.microsoft.MatMulNBits` whose outputs are no multiple of 8 has packed weights and scales
        alone, initializers that no other operator reads.
    Does: appends outputs whose weights and scales are zeros, up to a multiple of 64, and cuts them off by
        `Slice`. The initializers keep their names; the zeros are added when they are read.
    Ensures: the outputs of each `MatMulNBits` are a multiple of 8.
    """

    def requires(self, model: ir.Model) -> None:
        for node in _chosen(model):
            if len(node.inputs) != 3:
                raise ir.passes.PreconditionError(f"{node.name} has more than weights and scales")
            for value in node.inputs[1:]:
                if value is None or not value.is_initializer():
                    raise ir.passes.PreconditionError(f"a weight of {node.name} is computed")
                for use in value.uses():
                    if use.node.op_type != "MatMulNBits":
                        raise ir.passes.PreconditionError(
                            f"{use.node.name} reads {value.name}, which is to be padded"
                        )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = _chosen(model)
        weights = {value: _outputs(node) for node in chosen for value in node.inputs[1:]}
        for weight, outputs in weights.items():
            assert weight is not None and weight.shape is not None
            append_zeros(weight, int(weight.shape[0]) // outputs * (-outputs % FUSED))  # type: ignore[arg-type]
        for node in chosen:
            _cut(model.graph, node)
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        for node in _chosen(model):
            raise ir.passes.PostconditionError(f"{node.name} has {_outputs(node)} outputs")


def _chosen(model: ir.Model) -> list[ir.Node]:
    nodes = nodes_of(model, "MatMulNBits", domain=CONTRIB)
    return [node for node in nodes if _outputs(node) % TAKEN]


def _outputs(node: ir.Node) -> int:
    return node.attributes["N"].as_int()


def _cut(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a matmul by one with more outputs and a `Slice` of them."""
    outputs, old = _outputs(node), node.outputs[0]
    filled = outputs + -outputs % FUSED
    tape = ir.tape.Tape()
    wide = tape.op("MatMulNBits", node.inputs, {**node.attributes, "N": filled}, domain=CONTRIB)
    edges = [constant_vector(tape, [edge]) for edge in (0, outputs, -1)]
    cut = tape.op("Slice", [wide, *edges])
    wide.name, wide.type = f"{old.name}.filled", old.type
    if old.shape is not None:
        wide.shape = ir.Shape([*list(old.shape)[:-1], filled])
    for value, name in zip(edges, ("start", "end", "axis"), strict=True):
        value.name = f"{old.name}.{name}"
    wide.producer().name, cut.producer().name = node.name, f"{old.name}/Slice"  # type: ignore[union-attr]
    replace_node(graph, node, tape.nodes, [cut])
