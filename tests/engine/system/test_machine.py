"""Memory and processor as Linux reports them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lira_engine.system import machine


def test_free_swap_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_meminfo", lambda: {"MemAvailable": 1 << 20, "SwapFree": 2 << 20})
    assert machine.available_mib() == 3072
    monkeypatch.setattr(machine, "_meminfo", lambda: {"MemAvailable": 1 << 20})
    assert machine.available_mib() == 1024


@pytest.mark.parametrize(
    ("text", "name", "sets"),
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx512_vnni avx2 svm fma\n\nflags\t: \n",
            "AMD EPYC",
            ("avx2", "fma", "avx512_vnni"),
        ),
        (
            "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nModel\t\t: Raspberry Pi 5\n",
            "Raspberry Pi 5",
            ("asimd", "asimddp"),
        ),
    ],
)
def test_the_processor_and_its_instructions(
    text: str, name: str, sets: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert (machine.cpu_name(), machine.instruction_sets()) == (name, sets)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "nowhere")
    assert machine.cpu_name() and machine.instruction_sets() == ()
