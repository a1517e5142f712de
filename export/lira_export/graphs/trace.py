"""Export a torch module to a portable ONNX graph with readable names of weights and nodes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer
from torch import nn

from .functions import OPSET
from .llm import IR_VERSION

_SCOPES = "pkg.torch.onnx.name_scopes"


def trace(
    name: str,
    module: nn.Module,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> ir.Model:
    """Export ``module`` as graph ``name``.

    Args:
        inputs: argument of forward -> example tensor, in order. A dictionary (name -> tensor) stands for an
            argument that is a sequence.
        outputs: names of what forward returns.
        dynamic: input -> axis -> name of the dimension, for axes that vary from call to call.

    Returns:
        The graph in opset 24. Its weights share the module's memory. ``lira.*`` nodes have no body yet.
    """
    arguments = tuple(list(v.values()) if isinstance(v, Mapping) else v for v in inputs.values())
    names = [n for key, v in inputs.items() for n in (v if isinstance(v, Mapping) else (key,))]
    axes: tuple[dict[int, Any] | None, ...] | None = None
    if dynamic:
        named = {key: {a: torch.export.Dim(d) for a, d in dims.items()} for key, dims in dynamic.items()}
        axes = tuple(named.get(key) for key in inputs)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=list(outputs),
            dynamic_shapes=axes,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _fold_weight_transposes(model)
    _simplify(model)
    model.graph.name = name
    model.producer_name, model.producer_version, model.ir_version = "lira-edge", None, IR_VERSION
    _name_nodes(model)
    _strip(model)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch, which reports each step of an export and operators of packages that are missing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _fold_weight_transposes(model: ir.Model) -> None:
    """Store weights transposed, under their own names: torch writes a linear layer as Transpose, MatMul."""
    graph = model.graph
    for name, weight in list(graph.initializers.items()):
        nodes = [node for node, _ in weight.uses()]
        orders = {tuple(node.attributes["perm"].as_ints()) for node in nodes if node.op_type == "Transpose"}
        if weight.const_value is None or len(orders) != 1 or any(n.op_type != "Transpose" for n in nodes):
            continue
        array = np.ascontiguousarray(weight.const_value.numpy().transpose(orders.pop()))
        folded = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=weight.type, const_value=ir.tensor(array, name=name)
        )
        for node in nodes:
            ir.convenience.replace_all_uses_with(node.outputs[0], folded)
            graph.remove(node, safe=True)
        del graph.initializers[name]
        graph.register_initializer(folded)


def _simplify(model: ir.Model) -> None:
    """Run onnxscript's optimizer without its rewrite rules, which take constants up to 1e-8 for zero."""
    passes.InlinePass()(model)
    optimizer.fold_constants(model)
    _fold_reshapes(model)
    for each in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.ShapeInferencePass(),
    ):
        each(model)


def _fold_reshapes(model: ir.Model) -> None:
    """Give a Reshape with at most one varying axis a constant shape: -1 stands for that axis."""
    for node in model.graph:
        shape = node.outputs[0].shape
        if node.op_type != "Reshape" or shape is None or node.inputs[1] is None:
            continue
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if ir.convenience.get_const_tensor(node.inputs[1]) is None and sizes.count(-1) <= 1:
            name = f"{node.outputs[0].name}/shape"
            target = ir.Value(name=name, const_value=ir.tensor(sizes, ir.DataType.INT64, name=name))
            target.shape, target.dtype = ir.Shape([len(sizes)]), ir.DataType.INT64
            model.graph.register_initializer(target)
            node.replace_input_with(1, target)


def _name_nodes(model: ir.Model) -> None:
    """Name every node after its module: ``queries.layers.0.cross_attn/MatMul_2``."""
    seen: Counter[str] = Counter()
    modules: dict[ir.Node, str] = {}
    for node in model.graph:
        if _SCOPES in node.metadata_props:
            scopes = [part.strip(" '\"") for part in node.metadata_props[_SCOPES].strip("[]").split(",")]
            modules[node] = scopes[-2] if len(scopes) > 1 else ""  # the last one is the operator itself
        else:  # made by the optimizer
            producers = [value.producer() for value in node.inputs if value is not None]
            modules[node] = next((modules[p] for p in producers if p is not None), "")
        module = "" if modules[node].startswith("_") else modules[node]
        stem = f"{module}/{node.op_type}".lstrip("/")
        seen[stem] += 1
        node.name = stem if seen[stem] == 1 else f"{stem}_{seen[stem] - 1}"


def _strip(model: ir.Model) -> None:
    """Remove torch's records of modules, source files and their folders."""
    graph = model.graph
    owners: list[Any] = [model, graph, *graph.inputs, *graph.initializers.values()]
    for node in graph:
        owners += [node, *node.outputs]
    for owner in owners:
        owner.metadata_props.clear()
        owner.doc_string = None
