"""Keep the matrices of a traced graph in the dtype of its stage."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
import torch

from ..storage import Storage
from .llm import widened

# Operator -> inputs that take weights.
_WEIGHT_INPUTS = {"MatMul": (0, 1), "Gemm": (1,), "Conv": (1,)}
ONNX_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


def _converted(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(dtype.numpy()), name=tensor.name)


def store_weights(model: ir.Model, storage: Storage) -> None:
    """Put the weights of MatMul, Gemm and Conv into the dtype of ``storage``, in place; a Cast widens each.

    Weights that the dtype does not hold exactly, such as those computed from several others, stay fp32.
    """
    graph, dtype = model.graph, ONNX_DTYPES[storage.dtype]
    for name, weight in list(graph.initializers.items()):
        uses = list(weight.uses())
        if not uses or any(i not in _WEIGHT_INPUTS.get(node.op_type, ()) for node, i in uses):
            continue
        tensor = weight.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        if not storage.holds(torch.from_numpy(np.asarray(tensor.numpy()))):
            continue
        tape, shape = ir.tape.Tape(), ir.Shape(tensor.shape.numpy())
        lazy = ir.LazyTensor(partial(_converted, tensor, dtype), dtype=dtype, shape=shape, name=name)
        stored = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=lazy)
        ir.convenience.replace_all_uses_with(weight, widened(tape, stored))
        del graph.initializers[name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], tape.nodes)
