"""`lira.DeformableSampling` as NVIDIA's plugin for it, which is one kernel and comes with TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.function_body import FunctionBody
from lira_engine.lowering.function_calls import DEFORMABLE_SAMPLING, SAMPLING_INPUTS, replace_sampling_bodies

PLUGIN = "MultiscaleDeformableAttnPlugin_TRT"


class SampleByPlugin(ir.passes.InPlacePass):
    """The plugin takes exactly what the function takes, and the levels as tensors (its README in
    NVIDIA/TensorRT, plugin/multiscaleDeformableAttnPlugin).

    Requires: calls of `lira.DeformableSampling` with `level_shapes` and inputs of known shape, fp32; a parser
        that finds `version` of the plugin by its name.
    Does: gives each size a function with the plugin's node as its body.
    Ensures: the bodies are that node and a `Reshape`. The calls stay; inlining puts the bodies in their
        places. No definition of the node is left: a parser without the plugin fails.
    """

    def __init__(self, version: str) -> None:
        super().__init__()
        self.version = version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = model.opset_imports[""]

        def write(
            levels: Sequence[tuple[int, int]], heads: int, columns: int, points: int, overload: str
        ) -> ir.Function:
            return by_plugin(levels, heads, columns, self.version, overload, opset)

        return ir.passes.PassResult(model, replace_sampling_bodies(model, "plugin", write))


def by_plugin(
    level_shapes: Sequence[tuple[int, int]],
    num_heads: int,
    head_dim: int,
    version: str,
    overload: str,
    opset: int,
) -> ir.Function:
    """The function with the inputs and output of `lira.DeformableSampling`."""
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
