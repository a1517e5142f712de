"""Seconds of matmuls by form: measured here, or predicted for a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lira_bench.plan.efficiency import EFFICIENCY
from lira_calib.choosing import timing
from lira_calib.choosing.timing import FLOAT, Product, measured_times, predicted_times
from lira_calib.methods.rules import Template
from lira_engine.errors import LiraError

LARGE = Product(512, 512, 256)
SMALL = Product(16, 16, 8)
FORMS = [Template("w8a8", dynamic=True), Template("w8a8"), Template("int4", 32), Template("int8", 32)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lira-edge" / "matmuls.json"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Product, list[str]]]:
    """Replace the stopwatch; return what was measured."""
    calls = []

    def measure(product: Product, forms: list[Template], *_: object) -> timing.Times:
        calls.append((product, [one.text() for one in forms]))
        return {FLOAT: 1.0} | {one.text(): 0.5 for one in forms}

    monkeypatch.setattr(timing, "_measure", measure)
    return calls


def test_all_forms_of_a_product_are_timed_beside_the_float() -> None:
    found = measured_times([LARGE, SMALL, LARGE], FORMS, seconds=0.2)
    assert set(found) == {LARGE, SMALL}
    for times in found.values():
        assert list(times) == [FLOAT, "w8a8 dynamic", "w8a8", "int4/32", "int8/32"]
        assert all(0 < seconds < 1 for seconds in times.values())
    assert found[LARGE][FLOAT] > 5 * found[SMALL][FLOAT]
    # Eight bits are twice four: no form is timed as another one.
    assert found[LARGE]["int8/32"] > 1.2 * found[LARGE]["int4/32"]


def test_a_wide_weight_takes_time_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_WIDEST", 512)
    wide = measured_times([Product(512, 4096, 64)], [], seconds=0.1)
    narrow = measured_times([Product(512, 512, 64)], [], seconds=0.1)
    ratio = wide[Product(512, 4096, 64)][FLOAT] / narrow[Product(512, 512, 64)][FLOAT]
    assert 4 < ratio < 16


def test_many_rows_take_time_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = Product(512, 512, 4096), Product(512, 512, 512)
    monkeypatch.setattr(timing, "_WORK", 1e8)
    assert timing._measured_rows(many) == 381 and timing._measured_rows(SMALL) == SMALL.rows
    times = measured_times([many, few], [], seconds=0.1)
    assert 4 < times[many][FLOAT] / times[few][FLOAT] < 16


def test_what_was_measured_is_not_measured_again(clock: list[object], cache: Path) -> None:
    first = measured_times([LARGE], FORMS)
    assert measured_times([LARGE], FORMS[:2])[LARGE] == {
        name: first[LARGE][name] for name in (FLOAT, "w8a8 dynamic", "w8a8")
    }
    assert len(clock) == 1
    measured_times([LARGE], [*FORMS, Template("int4", 64)])  # a new form: all in turns
    measured_times([LARGE], FORMS, cold=True)
    assert len(clock) == 3
    assert len(json.loads(cache.read_text())) == 2  # settings


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "\xff"])
def test_a_damaged_cache_costs_time_only(clock: list[object], cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert measured_times([LARGE], FORMS)[LARGE][FLOAT] == 1
    measured_times([LARGE], FORMS)
    assert len(clock) == 1


def test_times_of_another_lowering_do_not_count(clock: list[object], cache: Path) -> None:
    measured_times([LARGE], FORMS)
    known = json.loads(cache.read_text())
    ((setting, times),) = known.items()
    cache.write_text(json.dumps({setting.replace("lowering ", "lowering x"): times}))
    measured_times([LARGE], FORMS)
    assert len(clock) == 2


def test_weights_of_a_large_stage_come_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cold = []
    monkeypatch.setattr(timing, "_measure", lambda p, f, s, c: cold.append(c) or {FLOAT: 1.0})
    measured_times([Product(2048, 8192, 1)] * 3, [])
    measured_times([Product(2048, 8192, 1)] * 4 + [SMALL], [])
    assert cold == [False, True, True]


def test_a_prediction_follows_peaks_and_bandwidth() -> None:
    prefill, decode = Product(2048, 8192, 2048), Product(2048, 8192, 1)
    forms = [*FORMS[1:], Template("int4", 128), Template("fp8")]
    times = predicted_times([prefill, decode], forms, "orin-nano-super", "llm")
    assert list(times[decode]) == [FLOAT, "w8a8", "int4/32", "int8/32", "int4/128"]  # fp8: no figure
    compute = times[prefill]
    share = {name: one.value for name, one in EFFICIENCY["orin"].compute.items()}
    eight = 17 * share["float prefill"] / (33 * share["int8 prefill"])
    assert compute["w8a8"] == pytest.approx(compute[FLOAT] * eight, rel=0.02)
    four = share["float prefill"] / share["int4 prefill"]
    assert compute["int4/32"] == pytest.approx(compute[FLOAT] * four, rel=0.02)
    bandwidth = times[decode]
    assert bandwidth["w8a8"] == pytest.approx(bandwidth[FLOAT] / 2, rel=0.05)
    assert bandwidth["int4/128"] < bandwidth["int4/32"] < 0.35 * bandwidth[FLOAT]


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(LiraError, match="orin-nano"):
        predicted_times([LARGE], FORMS, "nonesuch", "llm")
