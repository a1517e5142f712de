"""The figures of all engines of one machine: the content of results.json, and of a submitted file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lira_engine.bundle import schema
from lira_engine.engines.record import Build
from lira_engine.system.machine import Gpu

FORMAT = "lira-bench-results"
FORMAT_VERSION = 1

Status = Literal["measured", "refused", "failed"]
"""Of engines: refused ones were built, and `lira-edge run` does not run them on this machine."""


@dataclass(frozen=True)
class MachineFacts:
    """As `lira_engine.system.machine.Machine`. `threads`: of engines on the CPU; None: as they choose."""

    system: str
    cpu: str
    cores: int
    threads: int | None
    memory_gib: float | None
    instruction_sets: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    jetson: tuple[str, ...]
    power_mode: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class BundleFacts:
    """What was measured. `manifest_sha256`: of lira.json, which holds the hash of every file."""

    name: str
    manifest_sha256: str
    synthetic: bool
    is_authors_model: bool


@dataclass(frozen=True)
class Pictures:
    """The images that were asked about: how many, and name and size in pixels of the first."""

    count: int
    name: str
    width: int
    height: int


@dataclass(frozen=True)
class Asked:
    """What every engine was asked. `runs`: measured answers per image, after `warmup` others."""

    task: str
    forced: bool
    max_tiles: int | None
    runs: int
    warmup: int
    pictures: Pictures


@dataclass(frozen=True)
class WorstError:
    """The largest error on the check vectors (lira_engine.engines.accuracy), and the output that has it.

    `by`: "verify" on this machine's device, or "build" where that was not run.
    """

    value: float
    stage: str
    output: str
    by: str


@dataclass(frozen=True)
class CardFigures:
    """What the card, or the board, said of itself while answers were measured; None where it does not.

    Attributes:
        name, peak_memory_mib: of the card that was used. clock_mhz, memory_clock_mhz: medians.
        power_w: mean.
        temperature_c: largest. throttled: why the card lowered its clocks.
        energy_j_per_answer: joules, of the card or of the whole board (`energy_of`).
        source: who told it.
    """

    name: str | None = None
    peak_memory_mib: float | None = None
    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    energy_j_per_answer: float | None = None
    energy_of: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Figures:
    """Medians of a benchmark, seconds and tokens per second.

    `quiet`: whether others left the cores alone; None if unknown. `others`: cores that they used meanwhile.
    """

    ttft_s: float
    total_s: float
    decode_tokens_per_s: float
    end_to_end_tokens_per_s: float
    new_tokens: int
    peak_rss_mib: int | None
    quiet: bool | None
    others: float | None
    card: CardFigures | None = None


@dataclass(frozen=True)
class EngineResult:
    """One engine folder.

    Attributes:
        name: of the folder. reason: why there are no figures, or what is wrong with them; it may name paths
            of this machine. bytes: of its files. tools: packages that built it, with their versions.
    """

    name: str
    status: str
    reason: str = ""
    bytes: int | None = None
    tools: dict[str, str] | None = None
    error: WorstError | None = None
    figures: Figures | None = None


@dataclass(frozen=True)
class Results:
    """All engines of a bundle on one machine.

    `date`: UTC, ISO 8601. `drift`: time of an answer of the first measured engine, measured again at the end,
    over that of the first time; None if only one was measured.
    """

    date: str
    machine: MachineFacts
    bundle: BundleFacts
    asked: Asked
    engines: tuple[EngineResult, ...]
    drift: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **schema.write(self)}

    @property
    def measured(self) -> list[tuple[EngineResult, Figures]]:
        return [(one, one.figures) for one in self.engines if one.figures is not None]


def engine_result(
    name: str, build: Build | None, record: Mapping[str, Any] | None, reason: str | None, *, ran: bool
) -> EngineResult:
    """Return the result of an engine folder.

    `build`: its build.json. `record`: its bench.json, if one was written. `reason`: what went wrong. `ran`:
    it was tried.
    """
    status: Status = "measured" if record is not None else "failed" if ran else "refused"
    return EngineResult(
        name=name,
        status=status,
        reason=reason or "",
        bytes=None if build is None else sum(entry.bytes for entry in build.files.values()),
        tools=None if build is None else dict(build.tools),
        error=None if build is None else worst_error(build),
        figures=None if record is None else figures(record),
    )


def worst_error(build: Build) -> WorstError | None:
    """Return the largest error that `lira-edge verify` found, else that of the build; None if neither ran
    the engines."""
    by, stages = ("build", build.errors) if build.verified is None else ("verify", build.verified.errors)
    errors = [
        WorstError(error, stage, output, by)
        for stage, outputs in stages.items()
        for output, error in outputs.items()
    ]
    return max(errors, key=lambda one: one.value, default=None)


def figures(record: Mapping[str, Any]) -> Figures:
    """Return the figures of a bench.json."""
    during = record["load"]["during"]
    return Figures(
        ttft_s=record["ttft_s"]["median"],
        total_s=record["total_s"]["median"],
        decode_tokens_per_s=record["tokens_per_s"]["decode"],
        end_to_end_tokens_per_s=record["tokens_per_s"]["end_to_end"],
        new_tokens=record["new_tokens"],
        peak_rss_mib=record["peak_rss_mib"],
        quiet=record["load"]["quiet"],
        others=None if during is None else during["others"],
        card=_card(record.get("card")),
    )


def _card(found: Mapping[str, Any] | None) -> CardFigures | None:
    if found is None:
        return None

    def inside(name: str, key: str) -> float | None:
        member = found.get(name)
        return None if member is None else member[key]

    return CardFigures(
        name=found.get("name"),
        peak_memory_mib=found.get("peak_memory_mib"),
        clock_mhz=inside("clock_mhz", "median"),
        memory_clock_mhz=inside("memory_clock_mhz", "median"),
        power_w=inside("power_w", "mean"),
        temperature_c=inside("temperature_c", "largest"),
        throttled=tuple(found.get("throttled") or ()),
        energy_j_per_answer=found.get("energy_j_per_answer"),
        energy_of=found.get("energy_of"),
        source=found.get("source"),
    )
