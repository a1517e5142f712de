"""Matmuls, convolutions and attention run in fp16, everything else in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.nodes import require_inlined
from lira_engine.lowering.weights import cast_initializer, weight_of

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
KEPT = "lira.kept_fp32"
"""Metadata of a model: names of the weights that do not fit into fp16, separated by commas."""

_MULTIPLIES: Mapping[str, int] = MappingProxyType(
    {"MatMul": 2, "Gemm": 3, "Conv": 3, "ConvTranspose": 3, "Attention": 3}
)
"""Operators that multiply, and how many of their inputs, from the first on, become fp16. Every kernel that we
know accumulates in fp32."""
_MOVES: Mapping[str, Sequence[int] | None] = MappingProxyType(
    {
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
)
"""Operators that copy numbers without arithmetic, and the inputs that they copy; None: all."""
_UPDATES = ("ScatterElements", "TensorScatter")
_TAKES_ANY = ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Shape", "Size")
"""Operators of the standard that may read fp16 beside those above."""
LONGEST_SUM = 16384
"""Most terms whose sum stays below fp16's 65,504 for operands around 1. The longest sum over a weight in LIRA
has 14,336 terms; pooling features over a mask of 256 x 256 pixels has more."""


class UseMixedPrecision(ir.passes.InPlacePass):
    """fp16 with fp32 islands, written into the graph's types, as strongly typed builders want it.

    Requires: functions inlined; fp32 arithmetic: no fp16 value is read but by a Cast, by QuantizeLinear or
        DequantizeLinear, or by a contrib operator. Weights may be of any floating-point dtype behind a Cast.
    Does: lets matmuls, convolutions and attention read and write fp16, and the operators between them that
        only copy numbers. All other arithmetic (norms, softmax, activations, sampling, the residual stream)
        stays fp32, with a Cast where the two meet. Graph inputs that `in_half` names become fp16, and so do
        graph outputs that come out in fp16; the others keep their types. A matmul stays fp32 if it sums more
        than `LONGEST_SUM` terms, or its weight has values beyond fp16, which is named in the model's metadata
        under `KEPT`. Weights are cast when the file is written, one at a time.
    Ensures: these operators do not mix fp32 and fp16, no other arithmetic reads fp16, and of their outputs
        those of the graph are fp16 only if `in_half` names them.
    """

    def __init__(self, in_half: Callable[[str], bool] = lambda name: False) -> None:
        super().__init__()
        self.in_half = in_half

    def requires(self, model: ir.Model) -> None:
        require_inlined(model)
        for node in _standard(model):
            if node.op_type not in _TAKES_ANY and any(_is_half(value) for value in node.inputs):
                raise ir.passes.PreconditionError(f"{node.name}, a {node.op_type}, reads fp16, expected fp32")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        walk = _Walk(model.graph)
        for value in model.graph.inputs:
            if self.in_half(value.name or ""):
                walk.make_half(value)
        for node in list(model.graph):
            walk.visit(node)
        for i, value in enumerate(model.graph.outputs):
            if value in walk.halves and not self.in_half(value.name or ""):
                model.graph.outputs[i] = walk.wide_output(value)
        if walk.kept:
            model.metadata_props[KEPT] = ",".join(sorted(walk.kept))
        return ir.passes.PassResult(model, walk.modified)

    def ensures(self, model: ir.Model) -> None:
        for node in _standard(model):
            if node.op_type in _TAKES_ANY:
                continue
            places = _places(node)
            same = [node.inputs[i] for i in places or ()] + list(node.outputs if places else ())
            if {HALF, SINGLE} <= {value.dtype for value in same if value is not None}:
                raise ir.passes.PostconditionError(f"{node.name}, a {node.op_type}, mixes fp16 and fp32")
            if places is None and any(_is_half(value) for value in node.inputs):
                raise ir.passes.PostconditionError(f"{node.name}, a {node.op_type}, reads fp16")
        for value in model.graph.outputs:
            # Outputs of other operators may have been fp16 before.
            producer = value.producer()
            made_here = producer is not None and not producer.domain and _places(producer) is not None
            if made_here and _is_half(value) and not self.in_half(value.name or ""):
                raise ir.passes.PostconditionError(f"the graph's output {value.name} is fp16")


def kept_in_fp32(model: ir.Model) -> tuple[str, ...]:
    """Return the names of the weights that `UseMixedPrecision` found not to fit into fp16."""
    return tuple(filter(None, model.metadata_props.get(KEPT, "").split(",")))


class _Walk:
    """Visits the nodes of a graph front to back; `halves` holds the values that it made fp16."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.halves: set[ir.Value] = set()
        self.kept: set[str] = set()
        self.modified = False
        self._half_of: dict[ir.Value, ir.Value | None] = {}
        self._wide_of: dict[ir.Value, ir.Value] = {}

    def visit(self, node: ir.Node) -> None:
        """Let a node read and write fp16 if it may, and fp32 if it may not."""
        places = _places(node) if node.domain == "" else None
        take_half = self._multiply if node.op_type in _MULTIPLIES else self._move
        if places and take_half(node, places):
            return
        for i, value in enumerate(node.inputs):
            if value in self.halves:
                assert value is not None
                self._replace_input(node, i, self._wide(value, node))

    def make_half(self, value: ir.Value) -> None:
        self.modified |= value.dtype != HALF
        value.dtype = HALF
        self.halves.add(value)

    def wide_output(self, value: ir.Value) -> ir.Value:
        """Return a Cast of a graph output to fp32, which takes its name."""
        name = value.name
        value.name = f"{name}.half"
        cast = ir.node("Cast", [value], {"to": SINGLE}, name=f"{name}/Cast")
        wide = cast.outputs[0]
        wide.name, wide.type, wide.shape = name, ir.TensorType(SINGLE), value.shape
        self.graph.append(cast)
        self.modified = True
        return wide

    def _multiply(self, node: ir.Node, places: Sequence[int]) -> bool:
        """Let a node multiply in fp16. Return whether it does."""
        if _terms(node) > LONGEST_SUM:
            return False
        halves = [self._half(node.inputs[i], node) for i in places]
        if any(half is None for half in halves):
            return False
        self._make_node_half(node, places, halves)
        return True

    def _move(self, node: ir.Node, places: Sequence[int]) -> bool:
        """Let a node copy fp16 numbers if they are fp16 already. Return whether it does.

        What is written into an fp16 tensor, such as a KV cache, is cast; the tensor itself never is.
        """
        values = [node.inputs[i] for i in places]
        if node.op_type in _UPDATES:
            moved = values[0] in self.halves
        else:
            moved = all(value in self.halves or _source_in_half(value) for value in values)
        if moved:
            self._make_node_half(node, places, [self._half(value, node) for value in values])
        return moved

    def _make_node_half(
        self, node: ir.Node, places: Sequence[int], halves: Sequence[ir.Value | None]
    ) -> None:
        for i, half in zip(places, halves, strict=True):
            self._replace_input(node, i, half)
        for value in node.outputs:
            self.make_half(value)

    def _replace_input(self, node: ir.Node, i: int, value: ir.Value | None) -> None:
        self.modified |= node.inputs[i] is not value
        node.replace_input_with(i, value)

    def _half(self, value: ir.Value | None, before: ir.Node) -> ir.Value | None:
        """Return `value` in fp16; None for a weight that does not fit."""
        assert value is not None
        if value in self.halves:
            return value
        if value not in self._half_of:
            source, weight = _source_in_half(value), weight_of(value)
            if source is not None:
                self._half_of[value] = source
            elif weight is not None:
                self._half_of[value] = self._half_weight(weight)
            else:
                self._half_of[value] = self._cast(value, HALF, before)
        return self._half_of[value]

    def _half_weight(self, weight: ir.Value) -> ir.Value | None:
        stored, name = weight.const_value, weight.name
        assert stored is not None and name is not None
        if weight.dtype == HALF:
            return weight
        if not _fits(stored):
            self.kept.add(name)
            self.modified = True
            return None
        return cast_initializer(self.graph, weight, HALF, f"{name}.half")

    def _wide(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return an fp16 value in fp32."""
        if value not in self._wide_of:
            self._wide_of[value] = self._cast(value, SINGLE, before)
        return self._wide_of[value]

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        ending = "half" if dtype == HALF else "wide"
        cast = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}/Cast.{ending}")
        out = cast.outputs[0]
        out.name, out.type, out.shape = f"{value.name}.{ending}", ir.TensorType(dtype), value.shape
        self.graph.insert_before(before, cast)
        self.modified = True
        return out


def _standard(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.domain == "")


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == HALF


def _places(node: ir.Node) -> Sequence[int] | None:
    """Return which inputs of a standard operator become fp16 together with its outputs; None if it neither
    multiplies nor moves."""
    if node.op_type in _MULTIPLIES:
        return [i for i, value in enumerate(node.inputs[: _MULTIPLIES[node.op_type]]) if value is not None]
    if node.op_type in _MOVES:
        places = _MOVES[node.op_type]
        return range(len(node.inputs)) if places is None else places
    return None


def _source_in_half(value: ir.Value | None) -> ir.Value | None:
    """Return the fp16 value that `value` is a Cast of; None if it is not one."""
    cast = value.producer() if value is not None else None
    if cast is None or cast.op_type != "Cast":
        return None
    return cast.inputs[0] if _is_half(cast.inputs[0]) else None


def _terms(node: ir.Node) -> int:
    """Return how many terms a MatMul sums; 0 where that is not known, and for other operators."""
    left = node.inputs[0]
    if node.op_type != "MatMul" or left is None or not left.shape:
        return 0
    terms = left.shape[-1]
    return terms if isinstance(terms, int) else 0


def _fits(stored: ir.TensorProtocol) -> bool:
    """Return whether all values of a weight are within fp16's range. Reads the weight."""
    array, largest = np.asarray(stored.numpy()), float(np.finfo(np.float16).max)
    return not array.size or -largest <= float(array.min()) <= float(array.max()) <= largest
