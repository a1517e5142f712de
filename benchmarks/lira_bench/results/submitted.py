"""Read a submitted file, which anybody may have written: every key, text and number is checked.

Texts go into Markdown, where letters, digits and the few signs that are allowed mean nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lira_bench.forced import TASKS
from lira_bench.results.result import FORMAT, FORMAT_VERSION, Results
from lira_engine.bundle import schema
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.precision import MIXED
from lira_engine.errors import LiraError
from lira_engine.targets import TARGETS

MOST_BYTES = 1 << 16
MOST_TEXT = 120
MOST_MEMBERS = 40
MOST_DEPTH = 8
MOST_NUMBER = 1e13
FORBIDDEN = re.compile(
    r"[^A-Za-z0-9 ()+.,_%-]+|(?<=www)\.|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])", re.IGNORECASE
)
"""What a text may not hold: no sign that Markdown or HTML reads (a `_` inside a word is none), no path, no
address of a page."""
NOT_FIRST = " ()+.,_%-"
"""What a text may hold, but not begin with."""
BUNDLES = ("lira-2b", "lira-8b", "lira-qwen2-1.5b", "lira-nano")
"""Names that tell nothing of whose bundle it is. Others may be those of somebody's folder."""
OWN_BUNDLE = "own bundle"
_PRECISIONS = sorted({one for target in TARGETS.values() for one in target.precisions} | {MIXED})
ENGINE = f"({'|'.join(TARGETS)})-({'|'.join(_PRECISIONS)})"
"""Names of engine folders, as a regular expression."""
_MADE_BY = "expected a file that `lira-edge bench --all --submit FILE` wrote"
_NAME = r"[A-Za-z0-9].*"


def read_submitted(path: Path) -> Results:
    """Return the content of a submitted file. Raises LiraError if it is none, or holds what is not
    allowed."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise LiraError(f"{path} cannot be read ({error.strerror})") from None
    if len(content) > MOST_BYTES:
        raise LiraError(f"{path} has more than {MOST_BYTES // 1024} KiB, which no submitted file has")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LiraError(f"{path} is not JSON ({str(error).splitlines()[0]}); {_MADE_BY}") from None
    return checked(data, path.name)


def checked(data: Any, where: str) -> Results:
    """Return the results in parsed JSON; `where` begins messages. Raises LiraError as `read_submitted`."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LiraError(f'{where} lacks "format": "{FORMAT}"; {_MADE_BY}')
    version = data.get("format_version")
    if version != FORMAT_VERSION or type(version) is not int:
        raise LiraError(f"{where}: format_version is {str(version)[:20]!r}, expected {FORMAT_VERSION}")
    _check_values(data, where)
    body = {key: value for key, value in data.items() if key not in ("format", "format_version")}
    results = schema.read(Results, body, where)
    for what, found, form in _formed(results):
        if not re.fullmatch(form, found):
            raise LiraError(f"{where}: {what} is {found!r}, expected {form}")
    _check_numbers(results, where)
    return results


def _check_values(value: Any, where: str, depth: int = 0) -> None:
    """Raise LiraError for texts, numbers, lists and objects that are too large or too deep, and for forbidden
    signs."""
    if depth > MOST_DEPTH:
        raise LiraError(f"{where} is nested more than {MOST_DEPTH} deep, which no submitted file is")
    if isinstance(value, dict):
        members = [*value, *value.values()]
    elif isinstance(value, list):
        members = value
    else:
        members = []
    if len(members) > 2 * MOST_MEMBERS:
        raise LiraError(f"{where} has {len(members)} members in one place, expected at most {MOST_MEMBERS}")
    for member in members:
        _check_values(member, where, depth + 1)
    if isinstance(value, str):
        found = FORBIDDEN.search(value)
        if found:
            raise LiraError(f"{where}: {value[:MOST_TEXT]!a} has the sign {found[0][0]!a}, not allowed here")
        if len(value) > MOST_TEXT:
            raise LiraError(
                f"{where}: {value[:20]!r}... has {len(value)} signs, expected at most {MOST_TEXT}"
            )
    elif isinstance(value, (int, float)) and not 0 <= value <= MOST_NUMBER:  # nan is in no range
        raise LiraError(f"{where}: found {str(value)[:20]}, expected a number from 0 to {MOST_NUMBER:g}")


def _formed(results: Results) -> Iterator[tuple[str, str, str]]:
    """Yield (name, text, its regular expression)."""
    machine, bundle = results.machine, results.bundle
    yield "date", results.date, r"20\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    yield "system", machine.system, _NAME
    for device in (machine.cpu, *machine.jetson, *(gpu.name for gpu in machine.gpus)):
        yield "name of a device", device, _NAME
    yield "name of the bundle", bundle.name, "|".join((*map(re.escape, BUNDLES), OWN_BUNDLE))
    yield "manifest_sha256", bundle.manifest_sha256, "[0-9a-f]{64}"
    yield "task", results.asked.task, "|".join(TASKS)
    for one in results.engines:
        yield "an engine's name", one.name, ENGINE
        yield f"status of {one.name}", one.status, "measured" if one.figures else "refused|failed"
        yield f"reason of {one.name}", one.reason, ""
        if one.error is not None:
            yield f"stage of {one.name}", one.error.stage, "|".join(STAGES)
            yield f"output of {one.name}", one.error.output, r"[\w.]+"
            yield f"who found the error of {one.name}", one.error.by, "verify|build"


def _check_numbers(results: Results, where: str) -> None:
    """Raise LiraError for figures that no benchmark has."""
    names = [one.name for one in results.engines]
    if not results.measured or len(set(names)) < len(names):
        raise LiraError(
            f"{where}: found engines {', '.join(names) or 'none'}; expected each once, one measured"
        )
    for one, found in results.measured:
        positive = {
            "ttft_s": found.ttft_s,
            "total_s": found.total_s,
            "end_to_end_tokens_per_s": found.end_to_end_tokens_per_s,
            "new_tokens": found.new_tokens,
        }
        for name, value in positive.items():
            if not value > 0:
                raise LiraError(f"{where}: {name} of {one.name} is {value}, expected more than 0")
