"""Write the body of an ONNX function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike

CACHED_ATTENTION_INPUTS = (
    "query",
    "key",
    "value",
    "key_cache",
    "value_cache",
    "position",
    "positions",
    "cos_cache",
    "sin_cache",
)
"""Inputs of `lira.CachedAttention`, of each body of it and each node that replaces it."""


class FunctionBody:
    """Collects nodes over named inputs; `function` makes them an ONNX function."""

    def __init__(self, *inputs: str) -> None:
        self.inputs = [ir.val(name) for name in inputs]
        self._tape = ir.tape.Tape()
        self._constants: dict[str, ir.Value] = {}

    def op(
        self, op_type: str, *inputs: ir.Value, name: str | None = None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node and return its output, named `name`."""
        value = self._tape.op(op_type, inputs, attributes, domain=domain)
        value.name = name
        return value

    def split(self, x: ir.Value, lengths: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """Split `x` into pieces of `lengths` along `axis`."""
        inputs = [x, self.constant(list(lengths))]
        return self._tape.op_multi_out("Split", inputs, {"axis": axis}, num_outputs=len(lengths))

    def constant(self, value: int | list[Any], dtype: DTypeLike = np.int64) -> ir.Value:
        """Return a constant: an integer, or (nested) lists of them. Equal constants are one node."""
        return self._constant(np.array(value, dtype))

    def number(self, value: float) -> ir.Value:
        """Return an fp32 scalar. Equal constants are one node."""
        return self._constant(np.array(value, np.float32))

    def _constant(self, array: np.ndarray) -> ir.Value:
        key = f"{array.dtype} {array.tolist()}"
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=ir.tensor(array))
        return self._constants[key]

    def constant_like(self, reference: ir.Value, value: float) -> ir.Value:
        """Return a scalar of the floating-point type of `reference`."""
        key = f"{value} like {id(reference)}"
        if key not in self._constants:
            single = self.op("Constant", value=ir.tensor(np.array(value, np.float32)))
            self._constants[key] = self.op("CastLike", single, reference)
        return self._constants[key]

    def function(
        self,
        identifier: tuple[str, str, str],
        outputs: Sequence[ir.Value],
        attributes: Sequence[ir.Attr],
        opset: int,
    ) -> ir.Function:
        """Return the collected nodes as the function (domain, name, overload), in operators of `opset`."""
        domain, name, overload = identifier
        imports = {"": opset} | {node.domain: 1 for node in self._tape.nodes if node.domain}
        graph = ir.Graph(self.inputs, outputs, nodes=self._tape.nodes, opset_imports=imports, name=name)
        return ir.Function(domain, name, overload, graph=graph, attributes=attributes)
