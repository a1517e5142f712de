"""Scales per channel move from activations into the weights before and after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.engines.recipe import MEND
from lira_engine.lowering.nodes import require_last_axis

SINGLE = ir.DataType.FLOAT


@dataclass(frozen=True)
class ChannelScale:
    """Activations are divided by `read()` [channels] float32, positive.

    Attributes:
        divided: initializers whose last axis are the channels: weight and bias of a norm, or weight [I, K]
            and bias of a matmul. multiplied: weights [channels, outputs] of the matmuls that follow.
    """

    divided: tuple[str, ...]
    multiplied: tuple[str, ...]
    read: Callable[[], np.ndarray]


class ScaleChannels(ir.passes.InPlacePass):
    """Smoothing: an activation's large channels become smaller, the weights that read them larger.

    Requires: the initializers of each scale exist, in a floating-point type, with its channels. What the
        divided ones compute is channels / scale through norms over the last axis, matmuls, sums (of both
        terms divided), products (of one factor divided) and Relu; it is read by matmuls with the multiplied
        weights alone, and these read nothing else. So the floats' result stays the same, to rounding.
    Does: divides the last axis of the divided initializers and multiplies the rows of the multiplied ones.
        They keep their names and become fp32; a Cast to fp32 after one goes. Weights are scaled when they are
        read, one at a time.
    Ensures: every scaled initializer is fp32.
    """

    mend = MEND

    def __init__(self, scales: Sequence[ChannelScale]) -> None:
        super().__init__()
        self.scales = scales

    def requires(self, model: ir.Model) -> None:
        for one in self.scales:
            _require_channels(model, one)
            _require_same_result(model, one)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for one in self.scales:
            for name in one.divided:
                _scale(model.graph, name, partial(_divided, one.read))
            for name in one.multiplied:
                _scale(model.graph, name, partial(_multiplied, one.read))
        return ir.passes.PassResult(model, bool(self.scales))

    def ensures(self, model: ir.Model) -> None:
        for name in self._names():
            if model.graph.initializers[name].dtype != SINGLE:
                raise ir.passes.PostconditionError(f"{name} is not in fp32")

    def _names(self) -> list[str]:
        return [name for one in self.scales for name in (*one.divided, *one.multiplied)]


def _divided(scale: Callable[[], np.ndarray], weight: np.ndarray) -> np.ndarray:
    weight /= scale().astype(np.float32)
    return weight


def _multiplied(scale: Callable[[], np.ndarray], weight: np.ndarray) -> np.ndarray:
    weight *= scale().astype(np.float32)[:, None]
    return weight


def _scale(graph: ir.Graph, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    weight = graph.initializers[name]
    stored = weight.const_value
    assert stored is not None and weight.shape is not None

    def read() -> ir.TensorProtocol:
        return ir.tensor(change(np.asarray(stored.numpy()).astype(np.float32)), name=name)

    weight.const_value = ir.LazyTensor(read, dtype=SINGLE, shape=weight.shape, name=name)
    weight.dtype = SINGLE
    for cast in [use.node for use in weight.uses() if _widens(use.node)]:
        ir.convenience.replace_all_uses_with(cast.outputs[0], weight)
        graph.remove(cast, safe=True)


def _widens(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Cast") and node.attributes["to"].as_int() == SINGLE


def _require_channels(model: ir.Model, one: ChannelScale) -> None:
    scale = one.read()
    if scale.ndim != 1 or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ir.passes.PreconditionError("a scale of channels is no vector of positive numbers")
    axes = [*((name, -1) for name in one.divided), *((name, 0) for name in one.multiplied)]
    for name, axis in axes:
        weight = model.graph.initializers.get(name)
        if weight is None or not weight.shape:
            raise ir.passes.PreconditionError(f"there is no weight {name} to scale")
        if weight.shape[axis] != len(scale):
            raise ir.passes.PreconditionError(
                f"{name} has {weight.shape[axis]} channels, its scale has {len(scale)}"
            )
        if weight.dtype != SINGLE and not all(_widens(use.node) for use in weight.uses()):
            raise ir.passes.PreconditionError(f"{name}: expected a weight in fp32, or a Cast to it")


def _require_same_result(model: ir.Model, one: ChannelScale) -> None:
    """Follow what is divided through the graph, front to back, to the matmuls that multiply it again."""
    divided, multiplied = (
        {model.graph.initializers[name] for name in names} for names in (one.divided, one.multiplied)
    )
    for node in model.graph:
        reads = [value in divided for value in node.inputs]
        grown = [value for value in node.inputs if value in multiplied]
        if grown and _widens(node):
            multiplied.add(node.outputs[0])
        elif grown and (node.domain, node.op_type, reads) == ("", "MatMul", [True, False]):
            continue
        elif grown:
            raise ir.passes.PreconditionError(
                f"{node.name} reads {grown[0].name}, whose rows are multiplied, but no input that is divided"
            )
        elif any(reads):
            if not _stays_divided(node, reads):
                name = node.inputs[reads.index(True)].name  # type: ignore[union-attr]
                raise ir.passes.PreconditionError(
                    f"{node.name}, a {node.op_type}, reads {name}, whose channels are divided: it would "
                    "compute something else"
                )
            divided.add(node.outputs[0])
    for value in model.graph.outputs:
        if value in divided:
            raise ir.passes.PreconditionError(f"the graph's output {value.name} would be divided")


def _stays_divided(node: ir.Node, reads: Sequence[bool]) -> bool:
    """Return whether a node's first output is divided as those inputs are for which `reads` is True."""
    if node.domain:
        return False
    if node.op_type in _NORMS:
        require_last_axis(node)
        given = [value is not None for value in node.inputs]
        return not reads[0] and list(reads[1:]) == given[1:]
    allowed = _STAYS.get(node.op_type, ())
    return tuple(reads) in allowed


_NORMS = ("LayerNormalization", "RMSNormalization")
_STAYS = {
    "Add": ((True, True),),
    "Cast": ((True,),),
    "Identity": ((True,),),
    "MatMul": ((False, True),),
    "Mul": ((True, False), (False, True)),
    "Relu": ((True,),),  # scales are positive
}
"""Operators, and which of their inputs are divided if the output is."""
