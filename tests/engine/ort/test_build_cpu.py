"""A build chooses fp32 or int8 for an encoder by the clock of system.turns, and says who else ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lira_engine.build import build
from lira_engine.engines.record import read_build
from lira_engine.inspect import stage_table
from lira_engine.ort import build_cpu
from lira_engine.ort.session import open_session
from lira_engine.system.load import Load
from lira_engine.system.turns import Turns


@pytest.mark.parametrize(("fp32", "chosen"), [(1.5, "int8"), (1.05, "fp32")])
def test_the_clock_chooses(
    fp32: float, chosen: str, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int | None] = []
    files: list[Path] = []

    def opened(path: Path, asked: int | None = None, *others: Any, **more: Any) -> Any:
        threads.append(asked)
        files.append(path)
        return open_session(path, asked, *others, **more)

    def in_turns(works: Sequence[Callable[[], object]], more: Callable[[Turns], bool]) -> Turns:
        assert threads[-2:] == [1, 1]  # others do not delay a thread of these
        assert [file.parent.name for file in files[-2:]] == ["fp32", "int8"]  # a speedup over the first
        for work in works:
            work()
        assert more(Turns(((fp32,), (1.0,))))
        return Turns(((fp32, fp32 + 0.1, fp32 - 0.1), (1.0, 1.0, 1.0)))

    monkeypatch.setattr("lira_engine.ort.stage.open_session", opened)
    monkeypatch.setattr(build_cpu, "in_turns", in_turns)
    monkeypatch.setattr(build_cpu.load, "between", lambda first, last: Load(5.0, 2, 0.6, 0.1))
    record = read_build(build(bundle_path, "cpu", "int8", threads=2), "")
    timed = set(record.speedups)
    assert timed and {record.precisions[stage] for stage in timed} == {chosen}
    assert set(record.speedups.values()) == {fp32}
    assert record.others == dict.fromkeys(timed, 0.7)
    rows = {row[0]: row[-1] for row in stage_table(record)[1]}
    assert {rows[stage] for stage in timed} == {f"int8 {fp32:.2f}x fp32, others used 0.7 cores meanwhile"}
    assert rows["llm"] == ""
