"""The tables of submitted files in Markdown pages, between two markers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lira_bench.results import table
from lira_bench.results.result import EngineResult, Figures, Results
from lira_bench.results.submitted import read_submitted
from lira_bench.speed import report
from lira_bench.speed.report import seconds, significant
from lira_engine.errors import LiraError

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NAMES = r"[a-z0-9][a-z0-9.-]{0,60}\.json"
COLUMNS = (
    "machine", "bundle, task", "engine", "first token", "decode tok/s", "end to end tok/s", "of 21.6",
    "peak memory", "energy per answer", "",
)  # fmt: skip
_TEXTS, _COMPARED = 3, COLUMNS.index("of 21.6")


@dataclass(frozen=True)
class Entry:
    """A submitted file."""

    file: str
    results: Results

    @property
    def machine(self) -> str:
        """The board, the cards, or the processor."""
        found = self.results.machine
        cards = ", ".join(dict.fromkeys(gpu.name for gpu in found.gpus))
        return (found.jetson[0] if found.jetson else cards) or f"{found.cpu}, {found.cores} cores"

    @property
    def bundle(self) -> str:
        random = " (random weights)" if self.results.bundle.synthetic else ""
        return f"{self.results.bundle.name}{random}, {self.results.asked.task}"


def read_entries(folder: Path) -> list[Entry]:
    """Return the submitted files of a folder, sorted by machine. Raises LiraError for one that is none."""
    if not folder.is_dir():
        raise LiraError(f"{folder} is not a folder, expected one with submitted files")
    files = sorted(folder.glob("*.json"))
    for file in files:
        if not re.fullmatch(NAMES, file.name):
            raise LiraError(
                f"{folder} has {file.name!a}; expected small letters, digits, dots, dashes and .json"
            )
    entries = [Entry(file.name, read_submitted(file)) for file in files]
    return sorted(entries, key=lambda one: (one.machine.lower(), one.bundle, one.results.date, one.file))


def sections(entries: Sequence[Entry]) -> str:
    """Return a section for each machine, with a table for each of its files."""
    return "\n".join(_sections(entries)).strip()


def _sections(entries: Sequence[Entry]) -> Iterator[str]:
    if not entries:
        yield "No file was submitted yet."
    for machine, group in groupby(entries, key=lambda one: one.machine):
        yield from (f"### {machine}", "")
        for one in group:
            found = one.results
            yield from (f"**{one.bundle}**, {found.date}, [{one.file}]({one.file}):", "")
            yield from (f"{found.machine.system}; {table.setting(found)}.", "")
            for line in table.remarks(found):
                yield from (line, "")
            yield from (*report.rows(table.table(found, compared=found.bundle.is_authors_model)), "")
            for line in table.notes(found):
                yield from (line, "")


def summary(entries: Sequence[Entry]) -> str:
    """Return one table of all measured engines; beside the authors' rate if one of them is comparable."""
    if not entries:
        return "No file was submitted yet."
    rows = [_row(one, engine, figures) for one in entries for engine, figures in one.results.measured]
    compared = any(row[_COMPARED] for row in rows)
    kept = [place for place in range(len(COLUMNS)) if compared or place != _COMPARED]
    columns, *lines = [[row[place] for place in kept] for row in (COLUMNS, *rows)]
    return "\n".join(report.rows((columns, lines), texts=_TEXTS))


def _row(entry: Entry, engine: EngineResult, figures: Figures) -> list[str]:
    rates = (figures.decode_tokens_per_s, figures.end_to_end_tokens_per_s)
    compared = "; ".join(map(table.ratio, rates)) if entry.results.bundle.is_authors_model else ""
    return [
        entry.machine,
        entry.bundle,
        engine.name,
        seconds(figures.ttft_s),
        *map(significant, rates),
        compared,
        table.memory_cell(figures),
        table.energy_cell(figures),
        {True: "", False: "busy", None: "load unknown"}[figures.quiet],
    ]


def filled(page: str, content: str, where: str) -> str:
    """Return the page with `content` between its markers. Raises LiraError if it does not have both, once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise LiraError(
            f"{where} lacks the lines {BEGIN} and {END}, each once: write them where the table belongs"
        )
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}"
