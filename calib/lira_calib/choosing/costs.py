"""How often matmuls run in an average answer, and on how many rows: what their time is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lira_calib.choosing.assemble import StageMaterial, Storage, Unit, unit_key
from lira_calib.choosing.timing import FLOAT, Product, measured_times, predicted_times
from lira_calib.methods.rules import Template
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import read_graph
from lira_engine.engines.llm_tensors import LM_HEAD
from lira_engine.lowering.weights import constant_matmuls

if TYPE_CHECKING:
    from lira_calib.data.sequences import Sequence as Recorded

SECONDS = 12.0
"""For the measurements of a stage's matmuls; large ones take longer, small ones have more rounds."""

Runs = dict[int, float]
"""By number of rows of a run: how many such runs an average answer has."""


class Answered(Protocol):
    """A recorded sequence: the rows whose logits predict the tokens of its answer."""

    @property
    def token_rows(self) -> np.ndarray: ...


class Asked(Protocol):
    """The part of a `lira_calib.request.Request` that costs depend on."""

    @property
    def device(self) -> str | None: ...
    def storages_of(self, unit: Unit, /) -> Sequence[Storage]: ...


def llm_runs(sequences: Sequence[Answered]) -> Runs:
    """Return the passes of a decoder layer in an average answer: the prefill, a decode step for each token,
    and a pass for each region. Rows of prefills and of regions are averaged."""
    prefills, regions, steps = [], [], 0
    for sequence in sequences:
        rows = np.asarray(sequence.token_rows)
        prefills.append(int(rows[0]) + 1)
        gaps = np.diff(rows)
        steps += int(np.count_nonzero(gaps == 1))
        regions += [int(gap) for gap in gaps if gap > 1]
    runs: Counter[int] = Counter()
    runs[round(float(np.mean(prefills)))] += len(prefills)
    if regions:
        runs[round(float(np.mean(regions)))] += len(regions)
    if steps:
        runs[1] += steps
    return {rows: count / len(sequences) for rows, count in sorted(runs.items())}


def head_runs(sequences: Sequence[Answered]) -> Runs:
    """Return the passes of the LM head in an average answer: one row for each token."""
    return {1: sum(len(sequence.token_rows) for sequence in sequences) / len(sequences)}


def stage_runs(rows: int, runs: int, sequences: int) -> Runs:
    """Return the passes of a matmul of another stage, which read `rows` rows in `runs` runs."""
    return {max(1, round(rows / runs)): runs / sequences} if runs else {}


def unit_seconds(
    bundle: Bundle,
    units: Iterable[Unit],
    request: Asked,
    materials: Mapping[str, StageMaterial],
    sequences: Sequence[Recorded],
) -> dict[str, dict[str, float]]:
    """Return, by unit and option, the seconds of its matmuls in an average answer: measured on this machine,
    or predicted for the device that `request` names. FLOAT is always an option."""
    found: dict[str, dict[str, float]] = {}
    for stage in dict.fromkeys(unit.stage for unit in units):
        of_stage = [unit for unit in units if unit.stage == stage]
        offered = {unit_key(unit): request.storages_of(unit) for unit in of_stage}
        storages = [one for listed in offered.values() for one in listed]
        sizes = {
            one.name: (one.inputs, one.outputs)
            for one in constant_matmuls(read_graph(bundle.stage_file(stage)).graph)
        }
        runs = {
            weight: _runs(stage, weight, materials.get(stage), sequences)
            for unit in of_stage
            for weight in unit.weights
        }
        products = {
            weight: [(Product(*sizes[weight], rows), count) for rows, count in of_weight.items()]
            for weight, of_weight in runs.items()
        }
        distinct = {product for listed in products.values() for product, _ in listed}
        templates = {one.name: Template(one.kind, one.block, dynamic=one.dynamic) for one in storages}
        forms = list(dict.fromkeys(templates.values()))
        if not forms:
            times = {product: {FLOAT: 0.0} for product in distinct}
        elif request.device is None:
            times = measured_times(distinct, forms, SECONDS)
        else:
            times = predicted_times(distinct, forms, request.device, stage)
        for unit in of_stage:
            listed = [pair for weight in unit.weights for pair in products[weight]]
            names = {FLOAT: FLOAT}
            names |= {one.name: templates[one.name].text() for one in offered[unit_key(unit)]}
            found[unit_key(unit)] = {
                option: sum(count * times[product][form] for product, count in listed)
                for option, form in names.items()
                if all(form in times[product] for product, _ in listed)
            }
    return found


def _runs(stage: str, weight: str, material: StageMaterial | None, sequences: Sequence[Recorded]) -> Runs:
    """Return the passes of a weight's matmul in an average answer; none if calibration did not run it."""
    if stage == "llm":
        return head_runs(sequences) if weight == LM_HEAD else llm_runs(sequences)
    if material is None or weight not in material.rows:
        return {}
    runs = sum(_times_run(stage, sequence) for sequence in sequences)
    return stage_runs(material.rows[weight], runs, len(sequences))


def _times_run(stage: str, sequence: Recorded) -> int:
    return len(sequence.seg_rows) if stage == "pixel_decoder" else len(sequence.runs[stage])
