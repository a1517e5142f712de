"""A benchmark calls a machine quiet only if it was, before, during and after the runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lira_bench.speed import benchmark
from lira_bench.speed.card import CardLoad
from lira_bench.speed.quiet import Quiet, require_quiet_now
from lira_bench.speed.request import Request
from lira_engine.errors import LiraError
from lira_engine.system import load
from lira_engine.system.load import Load

QUIET = Load(5.0, 2, 0.02, 0.0)
BUSY = Load(5.0, 2, 0.7, 0.0, {"cc1plus": 0.5})
BUSIER = Load(5.0, 2, 1.5, 0.0)


@pytest.mark.parametrize(
    ("loads", "text", "quiet"),
    [
        ((QUIET, QUIET, QUIET), "quiet", True),
        ((QUIET, BUSY, QUIET), "busy: others used 0.7 of 2 cores (cc1plus 0.5)", False),
        ((BUSY, QUIET, QUIET), "busy: others used 0.7 of 2 cores (cc1plus 0.5) before the runs", False),
        ((QUIET, BUSY, BUSIER), "busy: others used 1.5 of 2 cores after the runs", False),
        ((QUIET, None, QUIET), "unknown: the runs were too short to tell", None),
        ((BUSY, None, QUIET), "busy: others used 0.7 of 2 cores (cc1plus 0.5) before the runs", False),
        ((None, None, None), "unknown: the system does not tell", None),
    ],
)
def test_quiet_is_what_was_quiet_all_the_time(
    loads: tuple[Load | None, Load | None, Load | None], text: str, quiet: bool | None
) -> None:
    found = Quiet(*loads)
    assert (found.text(), found.quiet) == (text, quiet)
    told = json.loads(json.dumps(found.as_dict()))
    assert told["quiet"] is quiet and (told["during"] is None) == (loads[1] is None)


PYTHON = {"python": 0.38, "code": 0.02}


@pytest.mark.parametrize(
    ("card", "loads", "text", "quiet"),
    [
        (CardLoad(0.0, {}, 0.0), (QUIET, QUIET, QUIET), "quiet", True),
        (CardLoad(0.05, None, 0.05), (QUIET, QUIET, QUIET), "quiet", True),  # a desktop
        (
            CardLoad(0.0, PYTHON, 0.0),
            (QUIET, QUIET, QUIET),
            "busy: others used 40 % of the card (python 38 %, code 2 %)",
            False,
        ),
        (CardLoad(0.9, {}, 0.1), (BUSY,) * 3, "busy: others used 90 % of the card before the runs", False),
        (CardLoad(0.0, {}, 0.06), (QUIET,) * 3, "busy: others used 6 % of the card after the runs", False),
        (
            CardLoad(0.0, PYTHON),
            (None,) * 3,
            "busy: others used 40 % of the card (python 38 %, code 2 %)",
            False,
        ),
        (
            CardLoad(0.0, {}, 0.0),
            (QUIET, BUSY, QUIET),
            "busy: others used 0.7 of 2 cores (cc1plus 0.5)",
            False,
        ),
        (CardLoad(None, {}, 0.0), (QUIET,) * 3, "unknown: the card does not tell how busy it is", None),
        (CardLoad(0.0, {}, None), (QUIET,) * 3, "unknown: the card does not tell how busy it is", None),
    ],
)
def test_quiet_is_the_card_too(
    card: CardLoad, loads: tuple[Load | None, Load | None, Load | None], text: str, quiet: bool | None
) -> None:
    found = Quiet(*loads, card)
    assert (found.text(), found.quiet) == (text, quiet)
    told = json.loads(json.dumps(found.as_dict()))["card"]
    assert told == {"before": card.before, "during": card.during, "after": card.after}


@pytest.mark.parametrize(
    ("load", "card", "note", "error"),
    [
        (QUIET, CardLoad(0.3), None, r"machine is busy: others used 30 % of the card; expected a quiet one"),
        (
            QUIET,
            CardLoad(None),
            "no NVML",
            r"card does not tell how busy it is \(no NVML\): leave --require-",
        ),
        (BUSY, CardLoad(0.0), None, r"machine is busy: others used 0\.7 of 2 cores"),
    ],
)
def test_a_busy_or_silent_card_is_refused(load: Load, card: CardLoad, note: str | None, error: str) -> None:
    with pytest.raises(LiraError, match=error):
        require_quiet_now(load, card, note)
    require_quiet_now(QUIET, CardLoad(0.05))
    require_quiet_now(QUIET)


def fake(monkeypatch: pytest.MonkeyPatch, *, idle: Load | None, during: Load | None) -> None:
    monkeypatch.setattr(load, "idle_load", lambda: idle)
    monkeypatch.setattr(load, "between", lambda first, last: during)


def request_for(bundle: Path, out: Path) -> Request:
    return Request(bundle, out, runs=1, warmup=0, precision="int4", require_quiet=True)


def test_a_busy_machine_is_refused_before_anything_runs(
    accuracy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(accuracy_bundle, tmp_path / "out")
    fake(monkeypatch, idle=BUSY, during=QUIET)
    with pytest.raises(LiraError, match=r"machine is busy: others used 0\.7 of 2 cores \(cc1plus 0\.5\)"):
        benchmark.bench(request)
    fake(monkeypatch, idle=None, during=None)
    with pytest.raises(LiraError, match="does not tell how busy it is"):
        benchmark.bench(request)
    assert not (tmp_path / "out").exists()


def test_figures_of_a_machine_that_became_busy_are_kept_and_refused(
    accuracy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fake(monkeypatch, idle=QUIET, during=BUSY)
    with pytest.raises(LiraError, match=r"not quiet but busy: others used 0\.7"):
        benchmark.bench(request_for(accuracy_bundle, out))
    record = json.loads((out / "bench.json").read_text())
    assert record["load"]["quiet"] is False and record["load"]["during"]["programs"] == {"cc1plus": 0.5}
    text = (out / "bench.md").read_text()
    assert "The machine was busy: others used 0.7 of 2 cores (cc1plus 0.5). It is faster" in text
    assert "| the machine meanwhile | busy: others used 0.7 of 2 cores (cc1plus 0.5) |" in text


def test_a_quiet_machine_passes(
    accuracy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fake(monkeypatch, idle=QUIET, during=QUIET)
    assert benchmark.bench(request_for(accuracy_bundle, out)).record["load"]["text"] == "quiet"
    assert "| the machine meanwhile | quiet |" in (out / "bench.md").read_text()
