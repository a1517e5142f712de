"""16-bit weights become fp32."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.weights import converted

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class WidenWeights(ir.passes.InPlacePass):
    """Weights in 16 bits become fp32, for targets that compute with nothing else.

    Requires: nothing.
    Does: puts an fp32 initializer in the place of each Cast of an fp16 or bf16 one to fp32; its values are
        converted when the file is written, one weight at a time. Weights that nothing reads any more go.
    Ensures: no Cast of a 16-bit initializer to fp32.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, modified = model.graph, False
        for cast in list(graph):
            weight = cast.inputs[0] if (cast.domain, cast.op_type) == ("", "Cast") else None
            if weight is None or not weight.is_initializer() or weight.dtype not in _HALF:
                continue
            if cast.attributes["to"].as_int() != ir.DataType.FLOAT:
                continue
            if cast.outputs[0].uses():
                wide = converted(graph, weight, ir.DataType.FLOAT, f"{weight.name}.wide")
                ir.convenience.replace_all_uses_with(cast.outputs[0], wide)
            graph.remove(cast, safe=True)
            modified = True
        for name, weight in list(graph.initializers.items()):
            if weight.dtype in _HALF and not weight.uses():
                del graph.initializers[name]
        return ir.passes.PassResult(model, modified)
