"""The card in a benchmark's record, its report and its figures; whole benchmarks with made-up sensors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from lira_bench.speed import benchmark, card, report
from lira_bench.speed.card import Card, Watched, open_card
from lira_bench.speed.figures import figures
from lira_bench.speed.request import Request
from lira_engine.errors import LiraError
from lira_engine.system import load
from lira_engine.system.card.first_gpu import FirstGpu
from lira_engine.system.card.sensors import Facts, Reading
from lira_engine.system.load import Load
from lira_engine.system.machine import Gpu, Jetson

READINGS = (
    Reading(1755, 2619, 300.0, 55, frozenset({"power cap"}), 1000, 5000),
    Reading(1980, 2619, 400.0, 61, frozenset(), 3000.4, 7000),
    Reading(1965, 2619, 350.0, 60, frozenset({"power cap", "temperature"}), 2000, 6000),
    Reading(),
)
WATCHED = Watched(READINGS, 5.0, 1500.0, {}, 0.02)
QUIET = Load(5.0, 2, 0.02, 0.0)


class Sensors:
    """Tells the same all the time."""

    source = "nvidia-ml-py"
    facts = Facts("Card A", 24564, "580.95", "8.9")

    def __init__(self, power_of: Literal["card", "board"] = "card", busy: float | None = 0.0) -> None:
        self.power_of, self._busy, self.closed = power_of, busy, False

    def read(self) -> Reading:
        return READINGS[0]

    def energy_j(self) -> float | None:
        return None

    def busy(self) -> float | None:
        return self._busy

    def others(self) -> Mapping[str, float] | None:
        return {}

    def close(self) -> None:
        self.closed = True


def card_with(watched: Watched, on_gpu: bool = True, **changes: Any) -> Card:
    return Card(on_gpu, Sensors(), watched=watched, **changes)


def made(watched: Watched = WATCHED, **changes: Any) -> dict[str, Any]:
    found = card_with(watched, **changes).record(3)
    assert found is not None
    return found


def test_the_record_of_a_card() -> None:
    assert made() == {
        "name": "Card A",
        "memory_mib": 24564,
        "driver": "580.95",
        "compute_capability": "8.9",
        "peak_memory_mib": 3000,
        "peak_memory_of": "process",
        "clock_mhz": {"median": 1965, "smallest": 1755, "largest": 1980},
        "memory_clock_mhz": {"median": 2619, "smallest": 2619, "largest": 2619},
        "power_w": {"mean": 350, "largest": 400},
        "temperature_c": {"largest": 61},
        "throttled": ["power cap", "temperature"],
        "energy_j_per_answer": 500,
        "energy_of": "card",
        "source": "nvidia-ml-py",
        "note": None,
        "samples": {"count": 4, "seconds": 5.0, "cpu_s": 0.02},
    }


def test_a_card_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(Watched((Reading(), Reading()), 9.0))
    told = {name for name, value in found.items() if value is not None}
    assert told == {"name", "memory_mib", "driver", "compute_capability", "source", "samples"}
    monkeypatch.setattr(card, "gpus", list)
    monkeypatch.setattr(card, "jetson", lambda: None)
    nothing = Card(True, note="no NVML").record(3)
    assert nothing is not None and nothing.keys() == found.keys()
    assert {name for name, value in nothing.items() if value is not None} == {"note", "samples"}


ORIN = Jetson("Jetson Orin", "36.4", None)
CARD = Gpu("Card A", "24564 MiB", "580.95", "8.9")


@pytest.mark.parametrize(
    ("board", "cards", "facts"),
    [
        (None, [CARD], Facts("Card A", 24564, "580.95", "8.9")),
        (None, [replace(CARD, memory="[N/A]")], Facts("Card A", None, "580.95", "8.9")),
        (None, [CARD, CARD], Facts()),  # which one it is, is not known
        (ORIN, [Gpu("Orin (nvgpu)", "[N/A]", "540")], Facts("Jetson Orin", None, "L4T 36.4")),
    ],
)
def test_facts_without_sensors(
    board: Jetson | None, cards: list[Gpu], facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "gpus", lambda: cards)
    monkeypatch.setattr(card, "jetson", lambda: board)
    found = Card(True, note="no NVML").record(3)
    assert found is not None and {name: found[name] for name in vars(facts)} == vars(facts)


@pytest.mark.parametrize(
    ("watched", "joules"),
    [
        (WATCHED, 500),
        (replace(WATCHED, seconds=0.9), None),  # a counter's steps are too coarse
        (replace(WATCHED, energy_j=None), 350 * 5 / 3),
        (replace(WATCHED, energy_j=None, seconds=2.9), None),  # power is a mean over a second
        (replace(WATCHED, energy_j=None, readings=(Reading(),)), None),
    ],
)
def test_energy_is_a_counters_or_mean_power_by_time(watched: Watched, joules: float | None) -> None:
    assert made(watched)["energy_j_per_answer"] == (None if joules is None else pytest.approx(joules))


def test_memory_where_the_card_does_not_list_this_process() -> None:
    """What all programs have more than before this one had any."""
    readings = [replace(one, own_mib=None) for one in READINGS]
    watched = replace(WATCHED, readings=readings)
    found = made(watched, used_before=4500.0)
    assert (found["peak_memory_mib"], found["peak_memory_of"]) == (2500, "card")
    for before in (None, 7000.0, 9000.0):
        found = made(watched, used_before=before)
        assert (found["peak_memory_mib"], found["peak_memory_of"]) == (None, None)


def test_engines_on_a_board_s_cpu_have_its_power_alone() -> None:
    found = made(on_gpu=False)
    assert found["energy_j_per_answer"] == 500 and found["power_w"]["mean"] == 350
    for name in ("clock_mhz", "memory_clock_mhz", "throttled", "peak_memory_mib", "peak_memory_of"):
        assert found[name] is None
    assert Card(False).record(3) is None and Card(False, note="no jetson-stats").record(3) is None


@pytest.mark.parametrize("in_use", [False, True])
def test_sensors_are_open_for_a_block(in_use: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that was used before is not known if this process had some of it."""
    sensors = Sensors()
    monkeypatch.setattr(card, "open_sensors", lambda on_gpu: sensors)
    monkeypatch.setattr(card, "first_gpu", lambda: FirstGpu("1", in_use))
    with pytest.raises(KeyError), open_card(True) as opened:
        assert (opened.used_before, opened.busy(), sensors.closed) == (None if in_use else 5000, 0.0, False)
        with opened.watch():
            pass
        assert len(opened.watched.readings) >= 2 and opened.watched.others == {}
        raise KeyError
    assert sensors.closed


def test_without_sensors_the_record_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(on_gpu: bool) -> None:
        raise LiraError("nvidia-ml-py is not installed")

    monkeypatch.setattr(card, "open_sensors", fail)
    monkeypatch.setattr(card, "first_gpu", FirstGpu)
    with open_card(True) as opened:
        assert opened.busy() is None
        with opened.watch():
            pass
    found = opened.record(1)
    assert found is not None and found["note"] == "nvidia-ml-py is not installed"


def benchmark_on(
    bundle: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: Card,
    bandwidth: float | None = 1000.0,
    require_quiet: bool = True,
) -> dict[str, Any]:
    """Return the record of a benchmark of the CPU's engines as if they were on `opened`."""

    @contextmanager
    def open_it(on_gpu: bool) -> Iterator[Card]:
        assert not on_gpu
        yield opened

    def driver(choice: str) -> str:
        assert choice == "auto"
        if bandwidth is None:
            raise LiraError("CUDA's calls need a package: pip install it")
        return "driver"

    monkeypatch.setattr(benchmark, "open_card", open_it)
    monkeypatch.setattr(benchmark, "open_driver", driver)
    monkeypatch.setattr(benchmark, "copy_bandwidth", lambda driver: bandwidth)
    monkeypatch.setattr(load, "idle_load", lambda seconds=0.5: QUIET)
    monkeypatch.setattr(load, "between", lambda first, last: QUIET)
    request = Request(bundle, out, runs=2, warmup=0, precision="int4", require_quiet=require_quiet)
    return benchmark.bench(request).record


def test_a_benchmark_on_a_card(
    accuracy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    found = benchmark_on(accuracy_bundle, out, monkeypatch, Card(True, Sensors()))
    assert json.loads(json.dumps(found)) == json.loads((out / "bench.json").read_text())
    assert found["card"]["clock_mhz"]["median"] == 1755 and found["card"]["samples"]["count"] >= 2
    assert found["load"]["card"] == {"before": 0.0, "during": {}, "after": 0.0}
    assert found["load"]["text"] == "quiet"
    traffic = found["decode_traffic"]
    assert (traffic["of"], traffic["read_bandwidth"], traffic["unknown"]) == ("card", 1000.0, None)
    assert traffic["roofline_fraction"] == pytest.approx(traffic["achieved_bandwidth"] / 1000)
    text = (out / "bench.md").read_text()
    assert "\nCard A, 24,564 MiB, compute capability 8.9, driver 580.95; " in text
    assert "The card's clock was held down: power cap." in text
    assert "| bandwidth, of the card's copies | " in text and " of 1000.0 GB/s" in text
    told = figures(found, out)
    assert told["card"] == found["card"] and told["bandwidth_of"] == "card"


def test_a_benchmark_without_a_driver_package_does_not_name_the_host_s_bandwidth(
    accuracy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    opened = Card(True, note="nvidia-ml-py is not installed")
    found = benchmark_on(accuracy_bundle, out, monkeypatch, opened, bandwidth=None, require_quiet=False)
    traffic = found["decode_traffic"]
    assert (traffic["of"], traffic["read_bandwidth"], traffic["roofline_fraction"]) == ("card", None, None)
    assert traffic["achieved_bandwidth"] > 0
    assert found["load"]["text"] == "unknown: the card does not tell how busy it is"
    text = (out / "bench.md").read_text()
    assert "GB/s, of what is unknown: CUDA's calls need a package: pip install it |" in text
    assert "| the card's sensors | unknown: nvidia-ml-py is not installed |" in text
    assert "The card's clock" not in text


@pytest.mark.parametrize(
    ("sensors", "error"),
    [
        (Sensors(busy=0.4), "the machine is busy: others used 40 % of the card; expected a quiet one"),
        (None, r"this card does not tell how busy it is \(no NVML\): leave --require-quiet out"),
    ],
)
def test_a_quiet_card_is_required_before_anything_runs(
    sensors: Any, error: str, accuracy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LiraError, match=error):
        benchmark_on(accuracy_bundle, tmp_path / "out", monkeypatch, Card(True, sensors, note="no NVML"))
    assert not (tmp_path / "out").exists()


def rows(found: dict[str, Any]) -> dict[str, str]:
    return dict(report._card_rows(found))


def test_the_rows_of_a_report() -> None:
    assert rows(made()) == {
        "peak memory of the GPU": "3,000 MiB",
        "clock of the GPU": "1,965 MHz, 1,755 to 1,980",
        "clock of its memory": "2,619 MHz",
        "highest temperature": "61 °C",
        "power of the card": "350 W, at most 400 W",
        "energy per answer, of the card": "500 J",
    }
    assert rows(made(Watched((), 0.0))) == {}
    growth = made(replace(WATCHED, readings=(Reading(used_mib=100.0),)), used_before=40.0)
    assert rows(growth)["peak memory of the GPU: of all programs, less what they had before"] == "60 MiB"
    board = Card(False, Sensors("board"), watched=WATCHED).record(3)
    assert board is not None
    assert set(rows(board)) == {
        "highest temperature",
        "power of the board",
        "energy per answer, of the board",
    }


def test_a_benchmark_of_engines_on_a_cpu_loads_nothing_of_a_gpu(
    accuracy_bundle: Path, tmp_path: Path
) -> None:
    code = f"""
import sys
from pathlib import Path
from lira_bench.speed import benchmark
from lira_bench.speed.request import Request
paths = Path({str(accuracy_bundle)!r}), Path({str(tmp_path / "out")!r})
request = Request(*paths, runs=1, warmup=0, precision="int4")
record = benchmark.bench(request).record
heavy = ("pynvml", "jtop", "pycuda", "cuda", "ctypes.wintypes")
print(record["card"], record["load"]["card"], [name for name in heavy if name in sys.modules])
print(record["decode_traffic"]["of"], any("libcuda" in line for line in open("/proc/self/maps")))
"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("the system does not list what a process has loaded")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["None None []", "host False"], done.stderr
