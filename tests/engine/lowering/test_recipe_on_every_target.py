"""One recipe of the miniature, lowered for every target, computes the same in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.accuracy import rms_error
from lira_engine.engines.llm_tensors import is_cache, with_lengths
from lira_engine.engines.recipe import (
    Form,
    Smoothing,
    StageRecipe,
    codes_key,
    scales_key,
    smoothing_key,
)
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.int4_blocks import Blocks, dequantize, quantize_positive
from lira_engine.lowering.pipeline import Pass, apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline
from lira_engine.lowering.weights import constant_matmuls

SMOOTHED = {
    "llm": [("layers.0.ffn", ("layers.0.ffn_norm",), ("layers.0.gate", "layers.0.up")),
            ("layers.1.down", ("layers.1.up",), ("layers.1.down",))],
    "semantic_encoder": [("0", ("vit.encoder.layers.0.norm1.weight", "vit.encoder.layers.0.norm1.bias"),
                          ("vit.encoder.layers.0.attn.qkv.weight",))],
}  # fmt: skip
TARGETS: dict[str, Callable[[str, StageRecipe], Sequence[Pass]]] = {
    "cpu": lambda stage, recipe: cpu_pipeline(stage, "mixed", recipe=recipe),
    "cuda": lambda stage, recipe: cuda_pipeline(stage, "mixed", recipe=recipe),
    "nv-tensorrt-rtx": lambda stage, recipe: cuda_pipeline(stage, "mixed", "nv-tensorrt-rtx", recipe=recipe),
    **{
        dialect: lambda stage, recipe, dialect=dialect: tensorrt_pipeline(
            stage, "mixed", dialect, lm_head_parts=3, recipe=recipe
        )
        for dialect in ("cache_update", "decomposed")
    },
}


@pytest.fixture(scope="module")
def bundle(nano_bundle: Path) -> Bundle:
    return Bundle.open(nano_bundle)


@pytest.fixture(scope="module")
def recipe_of(bundle: Bundle, session: Any) -> Callable[..., StageRecipe]:
    """recipe_of(stage, form...): a recipe whose weights take the forms in turn, with measured ranges."""

    @cache
    def ranges(stage: str) -> dict[str, tuple[float, float]]:
        model = ir.load(bundle.stage_file(stage))
        found = constant_matmuls(model.graph)
        inputs = {str(one.node.inputs[0].name): one.node.inputs[0] for one in found}  # type: ignore[union-attr]
        model.graph.outputs.extend(
            v for v in inputs.values() if v not in (*model.graph.inputs, *model.graph.outputs)
        )
        feeds = feeds_of(bundle, stage, model)
        outputs = {str(v.name): x for v, x in zip(model.graph.outputs, session(model, feeds), strict=True)}
        measured: dict[str, tuple[float, float]] = {}
        for one in found:
            x = {**feeds, **outputs}[str(one.node.inputs[0].name)]  # type: ignore[union-attr]
            low, high = measured.get(one.name, (0.0, 0.0))
            measured[one.name] = min(low, float(x.min())), max(high, float(x.max()))
        return measured

    def recipe_of(stage: str, *forms: Form, smooth: bool = False) -> StageRecipe:
        matmuls = {one.name: one for one in constant_matmuls(ir.load(bundle.stage_file(stage)).graph)}
        smoothing, tensors = [], {}
        factors: dict[str, np.ndarray | float] = {}
        for name, divided, multiplied in SMOOTHED.get(stage, ()) if smooth else ():
            smoothing.append(Smoothing(name, divided, multiplied))
            channels = matmuls[multiplied[0]].inputs
            scale = np.exp2(np.random.default_rng(0).uniform(-1, 1, channels)).astype(np.float32)
            tensors[smoothing_key(name)] = scale
            factors |= {one: 1 / scale for one in divided} | {one: scale[:, None] for one in multiplied}
        chosen = {}
        for (name, one), form in zip(matmuls.items(), cycle(forms), strict=False):
            if form.range is not None:
                form = replace(form, range=ranges(stage)[name])
            if form.method == "gptq":  # other codes than rounding to nearest gives
                weight = np.asarray(one.weight.numpy()).astype(np.float32) * factors.get(name, 1)
                blocks = quantize_positive(weight * 1.05, form.block or 0)
                half = blocks.scales.astype(np.float16)
                tensors |= {codes_key(name): blocks.packed, scales_key(name): half}
            chosen[name] = form
        return StageRecipe(chosen, tuple(smoothing), tensors)

    return recipe_of


def feeds_of(bundle: Bundle, stage: str, model: ir.Model) -> dict[str, np.ndarray]:
    feeds = with_lengths(bundle.check_vectors(stage).inputs, {str(v.name) for v in model.graph.inputs})
    for value in model.graph.inputs:  # check vectors leave an empty cache out
        name, dtype = str(value.name), np.float16 if value.dtype == ir.DataType.FLOAT16 else np.float32
        if is_cache(name):
            feeds.setdefault(name, np.zeros([int(n) for n in value.shape or ()], dtype))  # type: ignore[arg-type]
            feeds[name] = feeds[name].astype(dtype)
    return feeds


@pytest.fixture(scope="module")
def outputs_on(bundle: Bundle, session: Any) -> Callable[..., dict[str, np.ndarray]]:
    """outputs_on(target, stage, recipe): the floating-point outputs on the check vectors."""

    def outputs_on(target: str, stage: str, recipe: StageRecipe) -> dict[str, np.ndarray]:
        model = apply(ir.load(bundle.stage_file(stage)), TARGETS[target](stage, recipe))
        assert not constant_matmuls(model.graph)  # every weight has a form
        found = session(model, feeds_of(bundle, stage, model))
        pairs = zip([str(value.name) for value in model.graph.outputs], found, strict=True)
        return {k: x.astype(np.float32) for k, x in pairs if x.dtype.kind == "f" and not is_cache(k)}

    return outputs_on


INT4, CODES, INT8 = Form("int4", 32), Form("int4", 32, "gptq"), Form("int8", 32)
W8A8, FP8 = (Form(kind, range=(0.0, 0.0)) for kind in ("w8a8", "fp8"))
CASES = {
    # MatMulNBits on the CPU rounds activations to 8 bits, in blocks (0.5 % a matmul); fp16 adds 0.1 %.
    "int4": ((INT4,), 0.01, 0.1),
    "codes": ((CODES,), 0.01, 0.2),
    "int8": ((INT8,), 0.01, 0.02),
    # Activations are 0 to 255 with a zero point on CPUs, -127 to 127 elsewhere: each is off by 0.7 %.
    "w8a8": ((W8A8,), 0.03, 0.05),
    "mixed": ((INT4, CODES, INT8, W8A8), 0.03, 0.2),
}
"""Forms, which a stage's weights take in turn; largest difference between targets; and to the floats."""
FLIPS = ("queries",)
"""Outputs that compare sums: near ties are decided otherwise, and whole rows differ."""


@pytest.mark.parametrize(
    "stage, case",
    [(stage, case) for stage in STAGES for case in CASES if stage in SMOOTHED or case == "mixed"],
)
def test_every_target_computes_what_the_cpu_does(
    stage: str, case: str, recipe_of: Any, outputs_on: Any, bundle: Any
) -> None:
    """Padded blocks, parts of the LM head, an odd number of outputs and scaled channels included."""
    forms, limit, changed = CASES[case]
    recipe = recipe_of(stage, *forms, smooth=True)
    expected = outputs_on("cpu", stage, recipe)
    portable = bundle.check_vectors(stage).outputs
    for target in TARGETS:
        found = outputs_on(target, stage, recipe)
        assert found.keys() == expected.keys()
        for name, x in found.items():
            error = rms_error(x, expected[name])
            assert error < (0.1 if name in FLIPS else limit), (target, name)
            change = rms_error(x, portable[name]) if name in portable else 0.0
            assert change < changed, (target, name)
            if case in ("int4", "codes"):  # far less than what the recipe changes
                assert error < max(change / 3, 1e-3), (target, name)


@pytest.mark.parametrize("stage", ["semantic_encoder", "sefe", "llm"])
def test_fp8_computes_the_same_on_every_gpu_target(stage: str, recipe_of: Any, outputs_on: Any) -> None:
    """E4M3 has three bits of mantissa: numbers near a tie are off by 6 %, a matmul by 2 %."""
    recipe = recipe_of(stage, FP8, smooth=True)
    expected = outputs_on("cuda", stage, recipe)
    for target in ("nv-tensorrt-rtx", "cache_update", "decomposed"):
        for name, x in outputs_on(target, stage, recipe).items():
            assert rms_error(x, expected[name]) < (0.1 if name in FLIPS else 0.03), (target, name)


@pytest.mark.parametrize("target", ["cuda", "nv-tensorrt-rtx", "cache_update"])
def test_gpus_take_the_calibrated_range_of_a_dynamic_form(target: str, recipe_of: Any, bundle: Any) -> None:
    """They have no kernel that measures it."""
    both = []
    for dynamic in (True, False):
        recipe = recipe_of("sefe", replace(W8A8, dynamic=dynamic))
        model = apply(ir.load(bundle.stage_file("sefe")), TARGETS[target]("sefe", recipe))
        both.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert both[0] == both[1]


@pytest.mark.parametrize("form", [INT4, CODES, INT8], ids=Form.text)
@pytest.mark.parametrize("stage", ["llm", "sefe"])
def test_weights_are_stored_in_the_same_numbers(
    stage: str, form: Form, recipe_of: Any, bundle: Any, values: Any
) -> None:
    """Bit for bit, by MatMulNBits and by DequantizeLinear; the inputs of `down` are no whole blocks."""
    recipe = recipe_of(stage, form)
    pipelines = cpu_pipeline(stage, "mixed", recipe=recipe), TARGETS["cache_update"](stage, recipe)
    cpu, trt = (apply(ir.load(bundle.stage_file(stage)), passes) for passes in pipelines)
    ends = [name.removesuffix(".packed") for name in cpu.graph.initializers if name.endswith(".packed")]
    ends = [name for name in ends if ".qkv" not in name and "lm_head" not in name]
    for end in ends:
        weight, _, digit = end.rpartition(".")
        packed = np.asarray(cpu.graph.initializers[f"{end}.packed"].const_value.numpy())  # type: ignore[union-attr]
        blocks = Blocks(packed, values(cpu, f"{end}.scales").reshape(packed.shape[:2]))
        stored = weight if digit != "low" else f"{weight}.low"
        integers, scales = (values(trt, f"{stored}.{part}") for part in ("int4", "scales"))
        assert integers.max() == 7 and integers.min() == -8
        expected = dequantize(blocks, len(integers))
        np.testing.assert_array_equal(integers * scales.repeat(32, axis=0), expected)
    assert len(ends) >= 9


def test_parts_of_the_lm_head_are_stored_in_the_same_numbers(
    recipe_of: Any, bundle: Any, values: Any
) -> None:
    """The miniature's have 201, 201 and 202 outputs: two of them get a column of zeros."""
    recipe = recipe_of("llm", CODES)
    model = apply(ir.load(bundle.stage_file("llm")), TARGETS["cache_update"]("llm", recipe))
    packed, scales = recipe.codes("lm_head")
    whole = dequantize(Blocks(packed, scales), 160)
    edges = [len(packed) * i // 3 for i in range(4)]
    for i, (start, stop) in enumerate(pairwise(edges)):
        integers, steps = (values(model, f"lm_head.{i}.{part}") for part in ("int4", "scales"))
        found = (integers * steps.repeat(32, axis=0))[:, : stop - start]
        np.testing.assert_array_equal(found, whole[:, start:stop])
