"""Write a recipe that needs no calibration: ranges are measured in each run.

W8A8 for the large matmuls of the encoders and SEFE that `calibrate` may round, int4 in blocks of 32 for the
language model. Its one held-out question is made up: a build must be forced, and says nothing of quality.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lira_calib.judging.held_out import write_questions
from lira_calib.judging.question import Question
from lira_calib.methods.rules import keep_float
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import read_graph
from lira_engine.engines.recipe import Form, Recipe, StageRecipe, sources_of, write_recipe
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import SMALLEST
from lira_engine.lowering.weights import constant_matmuls
from lira_runtime import rle

SIDE = 448


def write_dynamic_recipe(bundle: Bundle, folder: Path) -> None:
    """Write the recipe of `bundle` into a new folder."""
    stages = {stage: StageRecipe(_forms(bundle, stage)) for stage in ("semantic_encoder", "pixel_encoder")}
    stages |= {stage: StageRecipe(_forms(bundle, stage)) for stage in ("sefe", "llm")}
    held_out = folder / "held_out"
    held_out.mkdir(parents=True)
    write_questions(held_out, [_made_up(bundle, held_out)])
    write_recipe(Recipe(bundle.manifest.name, sources_of(bundle), stages, tools={}), folder)


def _forms(bundle: Bundle, stage: str) -> dict[str, Form]:
    found = {}
    for matmul in constant_matmuls(read_graph(bundle.stage_file(stage)).graph):
        if keep_float(stage, matmul.name) is not None:
            continue
        if stage == "llm":
            found[matmul.name] = Form("int4", 32)
        elif min(matmul.inputs, matmul.outputs) >= SMALLEST:
            found[matmul.name] = Form("w8a8", range=(-1.0, 1.0), dynamic=True)
    return found


def _made_up(bundle: Bundle, folder: Path) -> Question:
    grey = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    mask = np.zeros((SIDE, SIDE), bool)
    mask[SIDE // 4 : SIDE // 2, SIDE // 4 : SIDE // 2] = True
    region, special = rle.encode(mask), bundle.manifest.tokens
    tokens = (special.seg, special.image_id)
    return Question(
        "made up", "grey.png", True, "refseg", "a thing", tokens, tokens, (region,), False, (region,), (0,)
    )
