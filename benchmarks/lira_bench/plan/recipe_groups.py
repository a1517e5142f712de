"""Count the weights of a bundle by the form that a recipe gives them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import onnx_ir as ir

from lira_bench.plan import polynomial
from lira_bench.plan.graph_costs import Matrix
from lira_bench.plan.operators import is_linear, operations
from lira_bench.plan.polynomial import Terms
from lira_bench.plan.precision import Form, Group
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import read_graph
from lira_engine.bundle.manifest import MANIFEST_NAME
from lira_engine.engines.recipe import Recipe, StageRecipe, read_recipe
from lira_engine.errors import LiraError
from lira_engine.lowering.weights import weight_of


def groups_of(size: str, recipe: Path) -> dict[str, tuple[Group, ...]]:
    """Return the groups of every stage, none for a stage of floats.

    Reads graphs and forms, no weight. Raises LiraError if `size` is no bundle's folder, or if the recipe is
    none or fits another bundle.
    """
    path = Path(size)
    if not (path / MANIFEST_NAME).exists():
        raise LiraError(f"--recipe names the weights of one bundle; expected its folder in place of {size!r}")
    bundle, read = Bundle.open(path, verify="sizes"), read_recipe(recipe, verify="sizes")
    read.check_bundle(bundle)
    return {stage: _of_stage(bundle, read, stage) for stage in bundle.manifest.stages}


def _of_stage(bundle: Bundle, recipe: Recipe, stage: str) -> tuple[Group, ...]:
    part = recipe.stage(stage)
    return count_groups(read_graph(bundle.stage_file(stage)), part) if part.forms else ()


def count_groups(model: ir.Model, recipe: StageRecipe) -> tuple[Group, ...]:
    """Return the groups of a graph: its weights by form and block, with the operations of their matmuls."""
    sizes: dict[tuple[str, int], Counter[tuple[int, int]]] = {}
    done: dict[tuple[str, int], list[Terms]] = {}
    for node in model.graph:
        if not is_linear(node):
            continue
        weight, found = weight_of(node.inputs[1]), operations(node)
        assert weight is not None and weight.shape is not None and found is not None
        form = recipe.forms.get(weight.name or "")
        if form is None or form.kind not in get_args(Form):
            continue
        key = (form.kind, form.block or 0)
        inputs, outputs = (int(size) for size in weight.shape)  # type: ignore[arg-type]
        sizes.setdefault(key, Counter())[inputs, outputs] += 1
        if found[0] == "linear":  # a small one stays a float
            done.setdefault(key, []).append(found[1])
    return tuple(
        Group(
            kind,  # type: ignore[arg-type]
            block,
            tuple(Matrix(*shape, number) for shape, number in sorted(counted.items())),
            polynomial.plus(*done.get((kind, block), [])),
        )
        for (kind, block), counted in sizes.items()
    )
