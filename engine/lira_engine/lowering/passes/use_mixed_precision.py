"""Products in fp16, everything else in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.weights import converted, weight_of

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
KEPT = "lira.kept_fp32"
"""Metadata of a model: names of the weights that do not fit into fp16, separated by commas."""

# Inputs that are multiplied. What accumulates inside is fp32 in every kernel that we know.
_PRODUCTS = {"MatMul": 2, "Gemm": 3, "Conv": 3, "ConvTranspose": 3, "Attention": 3}
# Operators that only move numbers, with the inputs that hold them; None: all.
_MOVES: dict[str, Sequence[int] | None] = {
    "Concat": None,
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "Identity": (0,),
    "Reshape": (0,),
    "ScatterElements": (0, 2),
    "Slice": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "TensorScatter": (0, 1),
    "Transpose": (0,),
    "Unsqueeze": (0,),
}
_STORES = ("ScatterElements", "TensorScatter")
LONGEST_SUM = 16384
"""Terms of a product that stays below fp16's 65,504 for operands around 1. The longest sum over a weight in
LIRA has 14,336; pooling features over a mask of 256 x 256 pixels is beyond it."""


class UseMixedPrecision(ir.passes.InPlacePass):
    """fp16 with fp32 islands, said in the graph: strongly typed builders take it from there.

    Requires: functions inlined, fp32 arithmetic; weights in any floating-point dtype behind a Cast, or not.
    Does: matrix products, convolutions and attention read and write fp16, and so do operators between them
        that only move numbers. All arithmetic else (norms, softmax, activations, sampling, the residual
        stream) stays fp32, with a Cast where the two meet. Graph inputs and outputs that `in_half` names
        become fp16, the others stay what they are. A weight with values beyond fp16 keeps its product in
        fp32 and is named in the model's metadata under `KEPT`; so does a product that sums more than
        `LONGEST_SUM` terms. Weights are converted when the file is written, one at a time.
    Ensures: values change by rounding to fp16 only.
    """

    def __init__(self, in_half: Callable[[str], bool] = lambda name: False) -> None:
        super().__init__()
        self.in_half = in_half

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        walk = _Walk(model.graph)
        for value in model.graph.inputs:
            if self.in_half(value.name or ""):
                value.dtype = HALF
                walk.narrow.add(value)
        for node in list(model.graph):
            walk.node(node)
        for i, value in enumerate(model.graph.outputs):
            if value in walk.narrow and not self.in_half(value.name or ""):
                model.graph.outputs[i] = walk.widened_output(value)
        if walk.kept:
            model.metadata_props[KEPT] = ",".join(sorted(walk.kept))
        return ir.passes.PassResult(model, True)


def kept_in_fp32(model: ir.Model) -> tuple[str, ...]:
    """The weights that `UseMixedPrecision` found not to fit into fp16."""
    return tuple(filter(None, model.metadata_props.get(KEPT, "").split(",")))


class _Walk:
    """Visits nodes front to back. `narrow` holds the values that are fp16 now."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.narrow: set[ir.Value] = set()
        self.kept: set[str] = set()
        self._halves: dict[ir.Value, ir.Value | None] = {}
        self._wides: dict[ir.Value, ir.Value] = {}

    def node(self, node: ir.Node) -> None:
        if node.domain == "" and node.op_type in _PRODUCTS and self.product(node):
            return
        if node.domain == "" and node.op_type in _MOVES and self.move(node):
            return
        for i, value in enumerate(node.inputs):
            if value in self.narrow:
                assert value is not None
                node.replace_input_with(i, self.wide(value, node))

    def product(self, node: ir.Node) -> bool:
        """Whether it runs in fp16 now."""
        places = [i for i in range(_PRODUCTS[node.op_type]) if i < len(node.inputs) and node.inputs[i]]
        if _terms(node) > LONGEST_SUM:
            return False
        halves = [self.half(node.inputs[i], node) for i in places]
        if any(half is None for half in halves):
            return False
        for i, half in zip(places, halves, strict=True):
            node.replace_input_with(i, half)
        self._retype(node)
        return True

    def move(self, node: ir.Node) -> bool:
        """Whether it moves fp16 now. A store does where what it stores into is fp16."""
        of_type = _MOVES[node.op_type]
        places = range(len(node.inputs)) if of_type is None else of_type
        values = [node.inputs[i] for i in places]
        if node.op_type in _STORES:
            moved = values[0] in self.narrow
        else:
            moved = all(value in self.narrow or self._rounded(value) for value in values)
        if moved:
            for i, value in zip(places, values, strict=True):
                node.replace_input_with(i, self.half(value, node))
            self._retype(node)
        return moved

    def half(self, value: ir.Value | None, before: ir.Node) -> ir.Value | None:
        """`value` in fp16; None for a weight that does not fit."""
        assert value is not None
        if value in self.narrow:
            return value
        if value not in self._halves:
            source = self._rounded(value)
            weight = weight_of(value)
            if source is not None:
                self._halves[value] = source
            elif weight is not None:
                self._halves[value] = self._half_weight(weight)
            else:
                self._halves[value] = self._cast(value, HALF, before)
        return self._halves[value]

    def wide(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """An fp16 value in fp32."""
        if value not in self._wides:
            self._wides[value] = self._cast(value, SINGLE, before)
        return self._wides[value]

    def widened_output(self, value: ir.Value) -> ir.Value:
        """A graph output that stays fp32 and keeps its name."""
        name = value.name
        value.name = f"{name}.half"
        cast = ir.node("Cast", [value], {"to": SINGLE}, name=f"{name}/Cast")
        wide = cast.outputs[0]
        wide.name, wide.type, wide.shape = name, ir.TensorType(SINGLE), value.shape
        self.graph.append(cast)
        return wide

    def _rounded(self, value: ir.Value | None) -> ir.Value | None:
        """The fp16 value that `value` is a Cast of."""
        cast = value.producer() if value is not None else None
        if cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
            return None
        return cast.inputs[0] if cast.inputs[0].dtype == HALF else None

    def _half_weight(self, weight: ir.Value) -> ir.Value | None:
        stored, name = weight.const_value, weight.name
        assert stored is not None and name is not None
        if weight.dtype == HALF:
            return weight
        if not _fits(stored):
            self.kept.add(name)
            return None
        return converted(self.graph, weight, HALF, f"{name}.half")

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        ending = "half" if dtype == HALF else "wide"
        cast = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}/Cast.{ending}")
        out = cast.outputs[0]
        out.name, out.type, out.shape = f"{value.name}.{ending}", ir.TensorType(dtype), value.shape
        self.graph.insert_before(before, cast)
        return out

    def _retype(self, node: ir.Node) -> None:
        for value in node.outputs:
            value.dtype = HALF
            self.narrow.add(value)


def _terms(node: ir.Node) -> int:
    """How many terms each number of a matrix product sums; 0 where that is not known."""
    left = node.inputs[0]
    if node.op_type != "MatMul" or left is None or not left.shape:
        return 0
    terms = left.shape[-1]
    return terms if isinstance(terms, int) else 0


def _fits(stored: ir.TensorProtocol) -> bool:
    array, largest = np.asarray(stored.numpy()), float(np.finfo(np.float16).max)
    return not array.size or -largest <= float(array.min()) <= float(array.max()) <= largest
