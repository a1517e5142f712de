"""Compare the prediction with the record of `lira-edge bench`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lira_bench.plan.device import Device
from lira_bench.plan.efficiency import BYTES, Efficiency
from lira_bench.plan.graph_costs import ModelCosts
from lira_bench.plan.precision import Build
from lira_bench.plan.roofline import BANDWIDTH, Roofline, StageTime
from lira_bench.plan.workload import Answer, Workload, workload
from lira_engine.errors import LiraError

FORMAT = "lira-bench"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Compared:
    """One quantity. `error` is predicted / measured - 1."""

    name: str
    unit: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Comparison:
    """The quantities. `fitting`: the shares, by class of work, that would predict the measured times."""

    rows: tuple[Compared, ...]
    fitting: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        rows = [{**asdict(one), "error": one.error} for one in self.rows]
        return {"rows": rows, "fitting": dict(self.fitting)}


class Measured:
    """A benchmark's record, read by key. `missing`: the keys that it lacks."""

    def __init__(self, path: Path) -> None:
        """Read the record. Raises LiraError if the file is none."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LiraError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise LiraError(
                f'{path} lacks "format": "{FORMAT}"; expected the bench.json of `lira-edge bench`'
            )
        if data.get("format_version") != FORMAT_VERSION:
            raise LiraError(
                f"{path} has format version {data.get('format_version')}, expected {FORMAT_VERSION}"
            )
        self.path = path
        self.missing: list[str] = []
        self._data = data

    def text(self, key: str) -> str | None:
        found = self._find(key, lambda value: isinstance(value, str))
        return None if found is None else str(found)

    def count(self, key: str) -> int | None:
        found = self._find(key, lambda value: type(value) is int and value >= 0)
        return None if found is None else int(found)

    def positive(self, key: str) -> float | None:
        """Return a number above zero, such as a time or a rate, or None."""
        found = self._find(
            key, lambda value: isinstance(value, (int, float)) and type(value) is not bool and value > 0
        )
        return None if found is None else float(found)

    def _find(self, key: str, right: Callable[[Any], bool]) -> Any:
        value: Any = self._data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None or not right(value):
            self.missing.append(key)
            return None
        return value


def compare(costs: ModelCosts, device: Device, build: Build, measured: Measured) -> Comparison:
    """Predict for the measured numbers of tiles, tokens, masks and regions, and compare.

    What the record lacks is left out and named in `measured.missing`. Raises LiraError if another model or
    precision was measured.
    """
    for key, expected in (("bundle", costs.name), ("precision", build.precision)):
        found = measured.text(key)
        if found is not None and found != expected:
            raise LiraError(f"{measured.path} measured {key} {found!r}, this plan is for {expected!r}")
    roofline = Roofline(costs, device, build.stages(costs.stages, device))
    asked = _workload(costs, measured)
    prediction = roofline.predict(asked)
    stages = dict(prediction.stages)
    rows = measured.count("stages.region_prefill.tokens")
    if rows:
        stages["region_prefill"] = roofline.llm(rows, asked.prompt_rows)
    for time in prediction.answers.values():
        stages["decode"] = time.decode
    runs = {name: asked.tiles if name == "semantic_encoder" else 1 for name in stages}
    times = {name: measured.positive(f"stages.{name}.median") for name in stages}
    compared = [
        Compared(name, "s", runs[name] * stage.seconds, seconds)
        for name, stage in stages.items()
        if (seconds := times[name]) is not None
    ]
    others = [("ttft_s.median", "s", prediction.ttft)]
    for time in prediction.answers.values():
        others.append(("tokens_per_s.decode", "tok/s", time.decode_tokens_per_second))
        others.append(("tokens_per_s.end_to_end", "tok/s", time.end_to_end_tokens_per_second))
    for key, unit, predicted in others:
        value = measured.positive(key)
        if value is not None:
            compared.append(Compared(key.removesuffix("_s.median"), unit, predicted, value))
    known = {name: (stages[name], runs[name], time) for name, time in times.items() if time is not None}
    return Comparison(tuple(compared), _fitting(roofline.efficiency, known))


def _fitting(share: Efficiency, known: Mapping[str, tuple[StageTime, int, float]]) -> dict[str, float]:
    """Fit the share of each class of work to the stages that it bounds, all else as predicted; that of the
    bandwidth to the decode step."""
    bound: dict[str, list[tuple[StageTime, int, float]]] = {}
    for name, entry in known.items():
        if entry[0].bound != BANDWIDTH or name == "decode":
            bound.setdefault(entry[0].bound, []).append(entry)
    fitting = {}
    for found, entries in bound.items():
        predicted = left = 0.0
        for stage, runs, seconds in entries:
            time = stage.traffic if found == BANDWIDTH else stage.work[found]  # type: ignore[index]
            predicted += runs * time
            left += seconds - runs * (stage.seconds - time)
        used = share.bandwidth if found == BANDWIDTH else share.compute[found]  # type: ignore[index]
        if left > 0:
            fitting[BYTES if found == BANDWIDTH else found] = used.value * predicted / left
    return fitting


def _workload(costs: ModelCosts, measured: Measured) -> Workload:
    """Return the measured workload, as far as the record has it."""
    default = workload(costs, measured.count("stages.semantic_encoder.count"))
    prompt = measured.count("stages.prefill.tokens") or default.prompt_rows
    tokens, masks, regions = (measured.count(key) for key in ("new_tokens", "masks", "regions"))
    if not tokens or masks is None or regions is None:
        return Workload(default.tiles, prompt, ())
    return Workload(
        default.tiles, prompt, (Answer(measured.text("task") or "answer", tokens, masks, regions),)
    )
