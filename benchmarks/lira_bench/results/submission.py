"""Write the results for others: what was measured, and nothing that tells whose machine it was.

Only what is listed here is written. A text loses every sign that `submitted` does not allow.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from lira_bench.results.result import CardFigures, EngineResult, MachineFacts, Results
from lira_bench.results.submitted import BUNDLES, ENGINE, FORBIDDEN, MOST_TEXT, NOT_FIRST, OWN_BUNDLE, checked
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write
from lira_engine.system.machine import Gpu
from lira_engine.system.text import json_text


def for_others(results: Results) -> Results:
    """Return the results without reasons, which name paths, and without names that the user chose, such as
    that of a folder beside the engines'.

    The names of other programs that ran meanwhile are not in results at all.
    """
    return replace(
        results,
        machine=_machine(results.machine),
        bundle=replace(results.bundle, name=_bundle_name(results)),
        engines=tuple(_engine(one) for one in results.engines if re.fullmatch(ENGINE, one.name)),
    )


def write(path: Path, results: Results) -> Results:
    """Write the results for others to `path`, whole or not at all, and return what it holds. Raises LiraError
    if no engine was measured."""
    if not results.measured:
        raise LiraError(f"{path} was not written: no engine was measured")
    found = for_others(results)
    data = found.to_json()
    checked(data, path.name)
    with atomic_write(path) as file:
        file.write(json_text(data).encode())
    return found


def _bundle_name(results: Results) -> str:
    name = results.bundle.name
    return name if name in BUNDLES else OWN_BUNDLE


def _machine(found: MachineFacts) -> MachineFacts:
    return MachineFacts(
        system=_text(found.system),
        cpu=_text(found.cpu),
        cores=found.cores,
        threads=found.threads,
        memory_gib=None if found.memory_gib is None else round(found.memory_gib, 1),
        instruction_sets=tuple(map(_text, found.instruction_sets)),
        gpus=tuple(
            Gpu(_text(gpu.name), _text(gpu.memory), _text(gpu.driver), _or_none(gpu.compute_capability))
            for gpu in found.gpus
        ),
        jetson=tuple(map(_text, found.jetson)),
        power_mode=_or_none(found.power_mode),
        versions=_texts(found.versions),
    )


def _engine(found: EngineResult) -> EngineResult:
    figures = found.figures
    if figures is not None and figures.card is not None:
        figures = replace(figures, card=_card(figures.card))
    return EngineResult(
        name=found.name,
        status=found.status,
        bytes=found.bytes,
        tools=None if found.tools is None else _texts(found.tools),
        error=found.error,
        figures=figures,
    )


def _card(found: CardFigures) -> CardFigures:
    return replace(
        found,
        name=_or_none(found.name),
        throttled=tuple(map(_text, found.throttled)),
        energy_of=_or_none(found.energy_of),
        source=_or_none(found.source),
    )


def _texts(found: dict[str, str]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in found.items()}


def _or_none(text: str | None) -> str | None:
    return None if text is None else _text(text)


def _text(text: str) -> str:
    allowed = " ".join(FORBIDDEN.sub(" ", text).split()).lstrip(NOT_FIRST)
    return allowed[:MOST_TEXT].rstrip() or "unknown"
