"""A residual sum and its norm become ONNX Runtime's `SkipSimplifiedLayerNormalization`."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, nodes_of, replace_node


class FuseResidualNorm(ir.passes.InPlacePass):
    """A residual sum and the norm that follows it in one pass over memory.

    Requires: nothing. Run it after UseSimplifiedLayerNormalization, whose operator it looks for.
    Does: replaces `Add` of two values of the same known shape + `SimplifiedLayerNormalization` with a
        constant scale by `com.microsoft.SkipSimplifiedLayerNormalization`, whose last output is the sum.
        Others stay.
    Ensures: no such pair is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for norm in nodes_of(model, "SimplifiedLayerNormalization"):
            add = _residual_sum(norm)
            if add is not None:
                _fuse(model.graph, add, norm)
                modified = True
        if modified:
            model.graph.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for norm in nodes_of(model, "SimplifiedLayerNormalization"):
            if _residual_sum(norm) is not None:
                raise ir.passes.PostconditionError(f"{norm.name} was not fused with the sum before it")


def _residual_sum(norm: ir.Node) -> ir.Node | None:
    """Return the `Add` to fuse with a norm; None if there is none."""
    total, scale = norm.inputs
    add = total.producer() if total is not None else None
    if add is None or (add.domain, add.op_type) != ("", "Add"):
        return None
    left, right = add.inputs
    # The fused node stands where the sum was: a scale that is computed may come later.
    if left is None or right is None or scale is None or not scale.is_initializer():
        return None
    return add if left.shape is not None and left.shape == right.shape else None


def _fuse(graph: ir.Graph, add: ir.Node, norm: ir.Node) -> None:
    fused = ir.node(
        "SkipSimplifiedLayerNormalization",
        [*add.inputs, norm.inputs[1]],
        {"epsilon": norm.attributes["epsilon"].as_float()},
        domain=CONTRIB,
        outputs=[ir.Value(), ir.Value(name=""), ir.Value(name=""), ir.Value()],
        name=norm.name,
    )
    # Where the sum was: other uses of it may come before the norm.
    graph.insert_after(add, [fused])
    replace_node(graph, add, [], [fused.outputs[3]])
    replace_node(graph, norm, [], [fused.outputs[0]])
