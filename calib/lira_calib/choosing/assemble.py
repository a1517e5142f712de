"""Turn choices into recipes: the forms of every weight, with the ranges, scales and codes that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lira_calib.choosing.search import FLOAT
from lira_engine.engines.recipe import (
    Form,
    Smoothing,
    StageRecipe,
    codes_key,
    scales_key,
    smoothing_key,
)

Range = tuple[float, float]
_ANY = (-1.0, 1.0)

MOST_SPREAD = 32.0
"""Of an input in 8 bits: its largest value over that of a typical row. Beyond, a typical row has fewer than
four steps on each side of zero: trained models have such rows, at the first token above all."""


@dataclass(frozen=True)
class Storage:
    """An option of the search other than FLOAT: how the weights of a unit are stored.

    Attributes:
        smooth: which scales move from activations into weights before: "" for none, "smoothquant", "awq".
    """

    kind: str
    block: int | None = None
    method: str = "nearest"
    dynamic: bool = False
    smooth: str = ""

    @property
    def name(self) -> str:
        """Return the option's name, such as "w8a8 dynamic", "int4/32 gptq" or "int4/32 awq"."""
        words = [f"{self.kind}/{self.block}" if self.block else self.kind]
        words += [self.method] if self.method != "nearest" else []
        words += ["awq"] if self.smooth == "awq" else []
        words += ["dynamic"] if self.dynamic else []
        return " ".join(words)

    @property
    def needs_range(self) -> bool:
        return self.kind in ("w8a8", "fp8")


def row_by_row(stage: str) -> Form | None:
    """Return what a weight gets whose input is too spread for one scale: blocks, whose inputs have a scale in
    each row; None for a float, where blocks are slower than floats."""
    return Form("int8", 32) if stage == "llm" else None


class Unit(Protocol):
    """Weights of a stage that are stored alike (`lira_calib.methods.rules.Unit`)."""

    @property
    def stage(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def weights(self) -> Sequence[str]: ...


def unit_key(unit: Unit) -> str:
    """Return STAGE/NAME, by which choices name a unit."""
    return f"{unit.stage}/{unit.name}"


@dataclass
class StageMaterial:
    """What calibration knows of a stage.

    Attributes:
        groups: scales that its graph can move. scales: [K] of a group, by (how it smooths, the group's name).
        range_of: the range of a weight's input under rounding in 8 bits; None in place of the scale [K] if
            the input is not smoothed.
        spread: of a weight's input, divided by a scale [K] or None: its largest value over that of a typical
            row.
        codes: integers and scales of weights that GPTQ rounded, by the names of StageRecipe.tensors.
        rows: how many rows each weight's matmul read, in all sequences.
    """

    groups: Sequence[Smoothing]
    scales: Mapping[tuple[str, str], np.ndarray]
    range_of: Callable[[str, np.ndarray | None, Storage], Range]
    spread: Callable[[str, np.ndarray | None], float] = lambda weight, scale: 1.0
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)


class Assembler:
    """Makes the parts of a recipe from options by unit. Ranges are computed once."""

    def __init__(
        self, materials: Mapping[str, StageMaterial], units: Iterable[Unit], storages: Iterable[Storage]
    ) -> None:
        self._materials = materials
        self._units = {unit_key(unit): unit for unit in units}
        self._storages = {storage.name: storage for storage in storages}
        self._ranges: dict[tuple[str, str, str, Storage], Range] = {}
        self.spreads: dict[str, float] = {}
        """By STAGE/WEIGHT: the spread of an input that is too large for one scale."""

    def stages(
        self,
        choice: Mapping[str, str],
        final: bool = True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, StageRecipe]:
        """Return the parts of a recipe for the options of `choice`, by unit (see `unit_key`); units that are
        not in it stay floats.

        final: also compute the ranges of dynamic forms, which CPU engines measure themselves. progress: gets
        the weights done and their number.
        """
        stored: dict[str, dict[str, Storage]] = {}
        for key, name in choice.items():
            if name != FLOAT:
                unit = self._units[key]
                stored.setdefault(unit.stage, {}).update(dict.fromkeys(unit.weights, self._storages[name]))
        done, total = 0, sum(map(len, stored.values()))

        def step() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        return {stage: self._stage(stage, of_weights, final, step) for stage, of_weights in stored.items()}

    def _stage(
        self, stage: str, stored: Mapping[str, Storage], final: bool, step: Callable[[], None]
    ) -> StageRecipe:
        material = self._materials[stage]
        smoothed: dict[str, tuple[Smoothing, str]] = {}  # by weight that is multiplied
        tensors: dict[str, np.ndarray] = {}
        smoothing = []
        for group in material.groups:
            how = _smooths(group, stored)
            if how and (how, group.name) in material.scales:
                smoothing.append(group)
                tensors[smoothing_key(group.name)] = material.scales[how, group.name]
                smoothed |= dict.fromkeys(group.multiplied, (group, how))
        forms: dict[str, Form] = {}
        for weight, storage in stored.items():
            if storage.needs_range and self._too_spread(stage, weight, smoothed.get(weight)):
                instead = row_by_row(stage)
                forms |= {} if instead is None else {weight: instead}
                step()
                continue
            forms[weight] = Form(
                storage.kind,
                storage.block,
                storage.method,
                self._range(stage, weight, storage, smoothed.get(weight), final),
                storage.dynamic,
            )
            if storage.method == "gptq":
                for key in (codes_key(weight), scales_key(weight)):
                    tensors[key] = material.codes[key]
            step()
        return StageRecipe(forms, tuple(smoothing), tensors)

    def _range(
        self,
        stage: str,
        weight: str,
        storage: Storage,
        smoothed: tuple[Smoothing, str] | None,
        final: bool,
    ) -> Range | None:
        if not storage.needs_range:
            return None
        if storage.dynamic and not final:
            return _ANY
        how = "" if smoothed is None else smoothed[1]
        key = (stage, weight, how, storage)
        if key not in self._ranges:
            self._ranges[key] = self._materials[stage].range_of(weight, self._scale(stage, smoothed), storage)
        return self._ranges[key]

    def _too_spread(self, stage: str, weight: str, smoothed: tuple[Smoothing, str] | None) -> bool:
        spread = self._materials[stage].spread(weight, self._scale(stage, smoothed))
        if spread > MOST_SPREAD:
            self.spreads[f"{stage}/{weight}"] = round(spread, 1)
        return spread > MOST_SPREAD

    def _scale(self, stage: str, smoothed: tuple[Smoothing, str] | None) -> np.ndarray | None:
        return None if smoothed is None else self._materials[stage].scales[smoothed[1], smoothed[0].name]


def _smooths(group: Smoothing, stored: Mapping[str, Storage]) -> str:
    """Return how a group is smoothed: as its first stored weight asks. Not at all if one of the group's
    weights has codes, which were rounded without a scale."""
    touched = [*group.divided, *group.multiplied]
    if any(name in stored and stored[name].method == "gptq" for name in touched):
        return ""
    return next((stored[name].smooth for name in group.multiplied if name in stored), "")
