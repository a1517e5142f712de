"""Ranges of the dynamic sizes that engines are built for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lira_engine import Bundle
from lira_engine.trt.profiles import ANY, DECODE, PREFILL, PREFILL_ROWS, Sizes, input_ranges, stage_profiles


def test_profiles_cover_the_sizes_of_each_stage(bundle_path: Path) -> None:
    manifest = Bundle.open(bundle_path).manifest
    short = stage_profiles(manifest, "llm")
    assert manifest.model.context_length == 16 and [p["S"].max for p in short] == [16, 1]
    long = dataclasses.replace(
        manifest, model=dataclasses.replace(manifest.model, context_length=PREFILL_ROWS)
    )
    assert stage_profiles(long, "llm") == [PREFILL, DECODE] and stage_profiles(long, "llm", 1) == [ANY]
    ranges = input_ranges(manifest.stages["llm"], PREFILL)
    width = manifest.model.hidden_size
    assert ranges["inputs_embeds"] == ((1, 1, width), (1, 256, width), (1, 256, width))
    assert ranges["logit_positions"] == ((1,), (1,), (4,)) and "position" not in ranges
    (sefe,) = stage_profiles(manifest, "sefe")
    rows = manifest.model.tokens_per_tile
    assert sefe["M"] == Sizes(rows, 7 * rows, 13 * rows)  # 6 tiles, up to 12 if asked for; the thumbnail, too
    assert stage_profiles(manifest, "pixel_encoder") == [{}]
