"""The graph declares an older opset, if its operators mean the same there."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from lira_engine.errors import LiraError

# Operators of ONNX Runtime in the standard's domain; the standard does not have them.
CONTRIB_IN_STANDARD_DOMAIN = frozenset({"SimplifiedLayerNormalization"})
# Newer opsets pool differently if this attribute is set; the signature does not show it.
_CHANGED_IF = {"MaxPool": "ceil_mode", "AveragePool": "ceil_mode", "LpPool": "ceil_mode"}
# From this opset on the scale is per channel, before it per group.
_CHANGED_IN = {"GroupNormalization": 21}


class DowngradeOpset(ir.passes.InPlacePass):
    """An older opset and IR version, so that an older runtime reads the file.

    Requires: functions inlined, their definitions removed.
    Does: sets the versions and removes newer attributes that have their default. A graph in an older opset
        stays in it. Raises LiraError with the first standard operator that the older opset lacks, or has with
        other inputs, outputs, attributes or types.
    Ensures: the opset is at most `opset`, the IR version at most `ir_version`.
    """

    def __init__(self, opset: int, ir_version: int) -> None:
        super().__init__()
        self.opset = opset
        self.ir_version = ir_version

    def requires(self, model: ir.Model) -> None:
        if model.functions:
            raise ir.passes.PreconditionError("functions must be inlined first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        current = model.opset_imports[""]
        modified = current > self.opset or model.ir_version > self.ir_version
        model.ir_version = min(model.ir_version, self.ir_version)
        if current > self.opset:
            for node in model.graph.all_nodes():
                if node.domain == "" and node.op_type not in CONTRIB_IN_STANDARD_DOMAIN:
                    self._downgrade(node, current)
            model.graph.opset_imports[""] = self.opset
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        if model.opset_imports[""] > self.opset or model.ir_version > self.ir_version:
            raise ir.passes.PostconditionError(
                f"opset {model.opset_imports['']} and IR version {model.ir_version} are left"
            )

    def _downgrade(self, node: ir.Node, current: int) -> None:
        try:
            new = onnx.defs.get_schema(node.op_type, current, "")
            old = onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            raise self._refusal(node, "it does not exist there") from None
        if new.since_version <= self.opset:
            return
        if _signature(new) != _signature(old):
            raise self._refusal(node, "its inputs or outputs were changed")
        if self.opset < _CHANGED_IN.get(node.op_type, 0):
            raise self._refusal(node, "its inputs mean something else there")
        pooling = _CHANGED_IF.get(node.op_type)
        if pooling is not None and node.attributes.get_int(pooling):
            raise self._refusal(node, f"{pooling} means something else there")
        for name, attribute in list(node.attributes.items()):
            if name in old.attributes:
                continue
            default = new.attributes[name].default_value
            if not default.type or ir.serde.deserialize_attribute(default).value != attribute.value:
                raise self._refusal(node, f"it has no attribute {name} there")
            del node.attributes[name]
        for used, allowed in _tensors(node, old):
            if used not in allowed:
                raise self._refusal(node, f"it does not take {used} there")
        if node.version is not None:
            node.version = self.opset

    def _refusal(self, node: ir.Node, reason: str) -> LiraError:
        return LiraError(
            f"operator {node.op_type} (node {node.name}) cannot be expressed in opset {self.opset}, which "
            f"older runtimes need: {reason}"
        )


def _signature(schema: onnx.defs.OpSchema) -> list[tuple[str, str]]:
    return [(formal.name, str(formal.option)) for formal in (*schema.inputs, *schema.outputs)]


def _tensors(node: ir.Node, schema: onnx.defs.OpSchema) -> Iterator[tuple[str, set[str]]]:
    """Yield the known type of each of a node's tensors with the types that the schema allows there."""
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for i, value in enumerate(values):
            if value is not None and value.dtype is not None:
                yield f"tensor({value.dtype.name.lower()})", set(formals[min(i, len(formals) - 1)].types)
