"""`lira.DeformableSampling` becomes NVIDIA's plugin for it: one kernel, which comes with TensorRT."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.function_body import FunctionBody
from lira_engine.lowering.function_calls import (
    DEFORMABLE_SAMPLING,
    SAMPLING_INPUTS,
    Sampling,
    calls_of,
    ensure_operators,
    give_sampling_bodies,
    sampling_of,
)

PLUGIN = "MultiscaleDeformableAttnPlugin_TRT"


class SampleByPlugin(ir.passes.InPlacePass):
    """Deformable sampling by the plugin. It takes the same inputs, and the levels as tensors (its README in
    NVIDIA/TensorRT, plugin/multiscaleDeformableAttnPlugin).

    Requires: calls of `lira.DeformableSampling` with `level_shapes` and inputs of known shape; fp32, and a
        parser that finds `version` of the plugin by its name (both not checked).
    Does: lets each call call another body: the plugin's node and a `Reshape`.
    Ensures: the bodies have nothing else but constants. The calls stay; inlining puts the bodies in their
        places. The node has no definition: a parser without the plugin fails.
    """

    def __init__(self, version: str) -> None:
        super().__init__()
        self.version = version

    def requires(self, model: ir.Model) -> None:
        for call in calls_of(model, DEFORMABLE_SAMPLING):
            sampling_of(call)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        write = partial(by_plugin, version=self.version, opset=model.opset_imports[""])
        return ir.passes.PassResult(model, give_sampling_bodies(model, "plugin", write))

    def ensures(self, model: ir.Model) -> None:
        for call in calls_of(model, DEFORMABLE_SAMPLING):
            ensure_operators(model, call, lambda op_type: op_type in (PLUGIN, "Reshape", "Constant"))


def by_plugin(sampling: Sampling, overload: str, version: str, opset: int) -> ir.Function:
    """Return a function with the inputs and output of `lira.DeformableSampling`."""
    level_shapes, num_heads, head_dim, _ = sampling
    body = FunctionBody(*SAMPLING_INPUTS)
    value, locations, weights = body.inputs
    sizes = [height * width for height, width in level_shapes]
    starts = [0, *accumulate(sizes[:-1])]
    sums = body.op(  # [1, Q, H, d]
        PLUGIN,
        value,
        body.constant([list(shape) for shape in level_shapes], np.int32),
        body.constant(starts, np.int32),
        locations,
        weights,
        domain=DEFORMABLE_SAMPLING[0],
        plugin_version=version,
        plugin_namespace="",
    )
    sampled = body.op("Reshape", sums, body.constant([1, -1, num_heads * head_dim]), name="sampled")
    shapes = ir.AttrInt64s("level_shapes", [side for shape in level_shapes for side in shape])
    return body.function((*DEFORMABLE_SAMPLING, overload), [sampled], [shapes], opset)
