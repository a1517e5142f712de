"""Ranges of the dynamic sizes that an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lira_engine.bundle.manifest import MAX_TILES, Manifest, StageSpec
from lira_engine.engines.precision import MIXED, precision_named
from lira_engine.trt.flavour import Package

PREFILL_ROWS = 256
"""Rows of a prefill chunk: as many as a region of ILVC has, less the few tokens around it."""
ASKED_ROWS = 4
"""Positions of a prefill chunk that may ask for logits."""


@dataclass(frozen=True)
class Sizes:
    """Values of a named dimension, by TensorRT's names; kernels are tuned for `opt`."""

    min: int
    opt: int
    max: int

    def capped(self, limit: int) -> Sizes:
        return Sizes(min(self.min, limit), min(self.opt, limit), min(self.max, limit))


Profile = Mapping[str, Sizes]
"""By the dimension's name in lira.json."""
PREFILL: Profile = {"S": Sizes(1, PREFILL_ROWS, PREFILL_ROWS), "K": Sizes(1, 1, ASKED_ROWS)}
DECODE: Profile = {"S": Sizes(1, 1, 1), "K": Sizes(1, 1, 1)}
ANY: Profile = {"S": Sizes(1, 1, PREFILL_ROWS), "K": Sizes(1, 1, ASKED_ROWS)}


def llm_profile_count(package: Package, precision: str) -> int:
    """Return how many profiles a language model's engine gets: two, as TensorRT times the kernels of each at
    its opt sizes. TensorRT for RTX compiles kernels at run time; version 1.7 keeps fp16 weights once per
    profile (LIRA-2B: 6.5 GB with two, 3.3 GB with one) and int4 weights once for both. A language model that
    a recipe changes is mostly int4.
    """
    rounded = precision == MIXED or precision_named(precision).quantized
    return 1 if package.compiles_at_run and not rounded else 2


def stage_profiles(manifest: Manifest, stage: str, llm_profiles: int = 2) -> list[Profile]:
    """Return the optimization profiles of a stage's engine.

    The language model has one for prefill (0) and one for decode (1), or one for both (`llm_profiles` 1). The
    semantic encoder takes one tile at a time. SEFE takes the features of any number of tiles that --max-tiles
    allows, and is fastest at the bundle's own number.
    """
    if stage == "llm":
        rows = manifest.model.context_length  # TensorRT refuses updates that are longer than the cache
        profiles = [PREFILL, DECODE] if llm_profiles == 2 else [ANY]
        return [{**profile, "S": profile["S"].capped(rows)} for profile in profiles]
    tile = manifest.model.tokens_per_tile
    tiles = manifest.preprocessing.tile
    thumbnail = 1 if tiles.use_thumbnail else 0
    opt, most = tiles.max_num + thumbnail, max(tiles.max_num, MAX_TILES) + thumbnail
    sizes = {"T": Sizes(1, 1, 1), "M": Sizes(tile, tile * opt, tile * most)}
    named = {
        size
        for spec in manifest.stages[stage].inputs.values()
        for size in spec.shape
        if isinstance(size, str)
    }
    return [{name: sizes[name] for name in sorted(named)}]


def input_ranges(spec: StageSpec, profile: Profile) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the min, opt and max shape of each input that has a named dimension."""
    ranges = {}
    for name, tensor in spec.inputs.items():
        if any(isinstance(size, str) for size in tensor.shape):
            ranges[name] = tuple(
                tuple(getattr(profile[s], which) if isinstance(s, str) else s for s in tensor.shape)
                for which in ("min", "opt", "max")
            )
    return ranges
