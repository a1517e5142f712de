"""Check that a recipe fits a bundle and a target, before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.precision import precision_named
from lira_engine.engines.recipe import MEND, Form, Recipe, StageRecipe, codes_key, scales_key, smoothing_key
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    import onnx_ir as ir

    from lira_engine.bundle.bundle import Bundle
    from lira_engine.engines.target import Target

_SCALE_BYTES = 4.0


def check_recipe(recipe: Recipe, bundle: Bundle, target: Target) -> dict[str, float]:
    """Return the expected size of each stage's engine, as a share of one that the recipe leaves alone.

    Raises LiraError for a recipe of another bundle, with weights that this one lacks or without tensors that
    it promises, and for forms that the target lacks.
    """
    target.check_precision("mixed")
    recipe.check_bundle(bundle)
    unknown = sorted(recipe.stages.keys() - set(STAGES))
    if unknown:
        raise LiraError(f"the recipe has a stage {unknown[0]!r}, expected {', '.join(STAGES)}: {MEND}")
    return {stage: _check_stage(recipe.stage(stage), bundle, stage, target) for stage in STAGES}


def _check_stage(part: StageRecipe, bundle: Bundle, stage: str, target: Target) -> float:
    if not part:
        return 1.0
    from lira_engine.bundle.graphs import read_graph  # imports onnx, which is slow

    for weight, form in part.forms.items():
        if form.kind not in target.kinds:
            raise LiraError(
                f"target {target.name} has no {form.kind} weights, which the recipe asks for at {weight} of "
                f"{stage}; it has {', '.join(target.kinds)}: {MEND}"
            )
    weights = dict(read_graph(bundle.stage_file(stage)).graph.initializers)
    named = [*part.forms, *(name for one in part.smoothing for name in (*one.divided, *one.multiplied))]
    for weight in named:
        if weight not in weights:
            raise LiraError(
                f"{stage} of {bundle.path} has no weight {weight!r}, which the recipe names: {MEND}"
            )
    brought = set(part.tensors)
    for key in _promised(part):
        if key not in brought:
            raise LiraError(f"the recipe lacks the tensor {stage}/{key}: {MEND}")
    return _share(part, weights, target)


def _promised(part: StageRecipe) -> list[str]:
    """Return the names of the tensors that a stage's forms and smoothings need."""
    brought = [weight for weight, form in part.forms.items() if form.method != "nearest"]
    keys = [key(weight) for weight in brought for key in (codes_key, scales_key)]
    return [*keys, *(smoothing_key(one.name) for one in part.smoothing)]


def _share(part: StageRecipe, weights: dict[str, ir.Value], target: Target) -> float:
    """Return the size of a stage's engine over its size without the recipe."""
    sizes = {
        name: (value.const_value.size, value.const_value.nbytes)
        for name, value in weights.items()
        if value.const_value is not None
    }
    share = precision_named(target.base).disk_share
    whole = sum(size for _, size in sizes.values()) * share
    kept = sum(size for name, (_, size) in sizes.items() if name not in part.forms) * share
    stored = sum(sizes[name][0] * _bytes_per_weight(form) for name, form in part.forms.items())
    return (kept + stored) / whole if whole else 1.0


def _bytes_per_weight(form: Form) -> float:
    """The CPU stores int8 as twice 4 bits, each with scales."""
    if form.block is None:
        return 1.0
    of_four_bits = 0.5 + _SCALE_BYTES / form.block
    return of_four_bits if form.kind == "int4" else 2 * of_four_bits
