"""Every reader refuses what is damaged with a LiraError, in time and without much memory.

`make fuzz MINUTES=60` runs the same harnesses for as long as wanted.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fuzz.kind import CORPUS, Kind
from fuzz.kinds import KINDS
from fuzz.limits import checked
from fuzz.strategies import inputs
from hypothesis import HealthCheck, Phase, given, settings

EXAMPLES = 150
FIXED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,  # the harness has a limit of its own
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_good_inputs_are_read_and_findings_of_earlier_runs_stay_mended(kind: Kind) -> None:
    assert not checked(kind, kind.seeds()[0]).refused
    for data in kind.corpus():
        checked(kind, data)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_changed_inputs_are_read_or_refused(kind: Kind) -> None:
    ends: Counter[bool] = Counter()

    @FIXED
    @given(inputs(kind))
    def one(data: bytes) -> None:
        ends[checked(kind, data).refused] += 1

    one()
    assert ends[True] >= EXAMPLES // 20, "the changes do no harm: the harness reads something else"


def test_the_corpus_is_of_kinds_that_there_are() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(KINDS)
    assert all(path.stat().st_size < 20_000 for path in CORPUS.rglob("*"))
