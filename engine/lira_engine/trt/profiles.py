"""Ranges of the dynamic sizes that an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lira_engine.bundle.manifest import MAX_TILES, Manifest, StageSpec
from lira_engine.engines.precision import precision_named
from lira_engine.trt.flavour import Package

PREFILL_ROWS = 256
"""Rows of a prefill pass: also what a region of ILVC is, less the few tokens around it."""
ASKED_ROWS = 4
"""Positions of a prefill pass that may ask for logits."""


@dataclass(frozen=True)
class Sizes:
    """Smallest, most usual and largest value of a named dimension."""

    least: int
    usual: int
    most: int

    def capped(self, most: int) -> Sizes:
        return Sizes(min(self.least, most), min(self.usual, most), min(self.most, most))


Profile = Mapping[str, Sizes]
"""By the dimension's name in lira.json."""
PREFILL: Profile = {"S": Sizes(1, PREFILL_ROWS, PREFILL_ROWS), "K": Sizes(1, 1, ASKED_ROWS)}
DECODE: Profile = {"S": Sizes(1, 1, 1), "K": Sizes(1, 1, 1)}
ANY: Profile = {"S": Sizes(1, 1, PREFILL_ROWS), "K": Sizes(1, 1, ASKED_ROWS)}


def llm_profiles(package: Package, precision: str) -> int:
    """How many profiles a language model's engine gets: two, because TensorRT chooses the kernels of each by
    timing them at its usual sizes. That for RTX compiles kernels when it runs; version 1.7 keeps fp16 weights
    once per profile (LIRA-2B: 6.5 GB with two, 3.3 GB with one) and int4 weights once for both.
    """
    return 1 if package.compiles_at_run and not precision_named(precision).quantized else 2


def stage_profiles(manifest: Manifest, stage: str, of_llm: int = 2) -> list[Profile]:
    """What a stage's engine is built for.

    The language model has a profile for prefill (0) and one for decode (1), or one for both (`of_llm` 1). One
    tile at a time goes through the semantic encoder. SEFE takes the features of any number of tiles that may
    be asked for (--max-tiles), and is fastest at the bundle's own.
    """
    if stage == "llm":
        rows = manifest.model.context_length  # TensorRT refuses updates that are longer than the cache
        profiles = [PREFILL, DECODE] if of_llm == 2 else [ANY]
        return [{**profile, "S": profile["S"].capped(rows)} for profile in profiles]
    tile = manifest.model.tokens_per_tile
    tiles = manifest.preprocessing.tile
    thumbnail = 1 if tiles.use_thumbnail else 0
    usual, most = tiles.max_num + thumbnail, max(tiles.max_num, MAX_TILES) + thumbnail
    sizes = {"T": Sizes(1, 1, 1), "M": Sizes(tile, tile * usual, tile * most)}
    named = {
        size
        for spec in manifest.stages[stage].inputs.values()
        for size in spec.shape
        if isinstance(size, str)
    }
    return [{name: sizes[name] for name in sorted(named)}]


def input_ranges(spec: StageSpec, profile: Profile) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Smallest, usual and largest shape of each input that has a named dimension."""
    ranges = {}
    for name, tensor in spec.inputs.items():
        if any(isinstance(size, str) for size in tensor.shape):
            ranges[name] = tuple(
                tuple(getattr(profile[s], which) if isinstance(s, str) else s for s in tensor.shape)
                for which in ("least", "usual", "most")
            )
    return ranges
