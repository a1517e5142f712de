"""What calibration learns of the language model, a layer at a time: statistics, and codes by GPTQ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lira_calib.choosing.assemble import StageMaterial, Storage
from lira_calib.choosing.materials import range_of, smoothquant_scales, spread_of, weights_of
from lira_calib.methods.awq import awq_smoothing
from lira_calib.methods.gptq import gptq_codes
from lira_calib.methods.gram import Grams
from lira_calib.methods.smoothing import smoothing_groups
from lira_calib.methods.statistics import InputStatistics
from lira_calib.runs.layered import LayeredLlm
from lira_calib.runs.observe import watched_tensors
from lira_calib.runs.stage_runs import read_arrays, write_arrays
from lira_engine.engines.llm_tensors import LM_HEAD
from lira_engine.engines.recipe import Smoothing, codes_key, scales_key
from lira_engine.lowering.llm_pieces import Piece

if TYPE_CHECKING:
    from lira_calib.data.sequences import Sequence as Recorded

STAGE = "llm"
Progress = Callable[[int, int], None]


def llm_material(
    llm: LayeredLlm,
    sequences: Sequence[Recorded],
    storages: Sequence[Storage],
    work: Path,
    progress: Progress = lambda done, total: None,
) -> StageMaterial:
    """Return the material of the language model, after running `sequences` through each of its pieces.

    storages: ways to store its weights that may be chosen: GPTQ's codes and AWQ's scales take their time, and
    are made only where one of them asks for it. What is known of a piece is in `work` before the next one.
    """
    work.mkdir(parents=True, exist_ok=True)
    merged = InputStatistics()
    groups: list[Smoothing] = []
    made: dict[str, np.ndarray] = {}
    scales: dict[tuple[str, str], np.ndarray] = {}
    readers = {name: weights_of(piece.model) for piece in llm.pieces for name in piece.weights}

    def values(name: str) -> np.ndarray:
        return readers[name](name)

    for number, piece in enumerate(llm.pieces):
        progress(number, len(llm.pieces))
        movable = smoothing_groups(piece.model)
        statistics, of_piece = _learned(llm, number, movable, sequences, storages, work)
        made |= of_piece
        merged.merge(statistics)
        groups += movable
        if any(one.smooth == "smoothquant" for one in storages):
            scales |= smoothquant_scales(movable, statistics, values)
    progress(len(llm.pieces), len(llm.pieces))
    scales |= {("awq", one.name): made.pop(f"{one.name}.awq") for one in groups if f"{one.name}.awq" in made}
    ranges = partial(range_of, STAGE, merged, values)
    return StageMaterial(groups, scales, ranges, partial(spread_of, merged), made)


def _learned(
    llm: LayeredLlm,
    number: int,
    movable: Sequence[Smoothing],
    sequences: Sequence[Recorded],
    storages: Sequence[Storage],
    work: Path,
) -> tuple[InputStatistics, dict[str, np.ndarray]]:
    """Return the statistics of a piece, and what they gave: GPTQ's codes by the names of StageRecipe.tensors,
    and AWQ's scale of each group as GROUP.awq."""
    piece = llm.pieces[number]
    file, made_file = work / f"{piece.name}.statistics", work / f"{piece.name}.safetensors"
    if file.exists() and made_file.exists():
        return InputStatistics.load(file), read_arrays(made_file)
    statistics, grams = InputStatistics(), Grams(watched_tensors(piece.model.graph))
    four_bits = next((one for one in storages if one.kind == "int4"), None)
    coded = four_bits is not None and four_bits.method == "gptq"

    def sink(weight: str, rows: np.ndarray) -> None:
        statistics.add(weight, rows)
        if coded:
            grams.add(weight, rows)

    llm.observe(number, list(sequences), sink)
    made: dict[str, np.ndarray] = {}
    if four_bits is not None and four_bits.block is not None:
        if four_bits.method == "gptq":
            made = _codes(piece, grams, four_bits.block)
        elif four_bits.smooth == "awq":
            found = awq_smoothing(movable, statistics, weights_of(piece.model), four_bits.block)
            made = {f"{one.name}.awq": scale for one, scale in found}
    statistics.save(file)
    write_arrays(made_file, made, piece.name)
    return statistics, made


def _codes(piece: Piece, grams: Grams, block: int) -> dict[str, np.ndarray]:
    """Return GPTQ's integers and scales of a piece's weights, but for the LM head, whose many outputs are
    stored in 8 bits or to nearest."""
    read = weights_of(piece.model)
    found = {}
    for name in piece.weights:
        if name != LM_HEAD:
            packed, scales = gptq_codes(read(name), grams[name], block)
            found[codes_key(name)] = packed
            found[scales_key(name)] = scales.astype(np.float16)
    return found
