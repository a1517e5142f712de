"""Sensors by what nvidia-smi prints."""

from __future__ import annotations

from typing import Any

import pytest

from lira_engine.errors import LiraError
from lira_engine.system import machine
from lira_engine.system.card import nvidia_smi
from lira_engine.system.card.first_gpu import FirstGpu
from lira_engine.system.card.nvidia_smi import open_nvidia_smi
from lira_engine.system.card.sensors import Facts, Reading

GPU = FirstGpu("00000000-0000-0000-0000-000000000001")
LINE = "Card A, 24564 MiB, 580.95, 1980 MHz, 2619 MHz, 350.50 W, 61, 3072 MiB, 37 %"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`program.lines`: what it prints for the sensors; `program.commands`: how it was run; `program.now`."""

    class Program:
        lines: list[str] = [LINE]  # noqa: RUF012
        now = 0.0

        def __init__(self) -> None:
            self.commands: list[list[str]] = []

        def answer(self, command: list[str]) -> list[str]:
            if "--query-gpu=name,memory.total,driver_version" in command:
                return ["Card A, 24564 MiB, 580.95", "Card B, 24564 MiB, 580.95"]
            if "--query-gpu=compute_cap" in command:
                return ["8.9", "9.0"]
            self.commands.append(command)
            return self.lines

    found = Program()
    monkeypatch.setattr(machine, "_answer", found.answer)
    monkeypatch.setattr(nvidia_smi.time, "monotonic", lambda: found.now)
    return found


def test_all_that_it_tells(program: Any) -> None:
    card = open_nvidia_smi(GPU)
    assert card.facts == Facts("Card A", 24564, "580.95", "8.9")
    assert card.read() == Reading(1980, 2619, 350.5, 61, used_mib=3072)
    assert (card.energy_j(), card.others()) == (None, None)
    (command,) = program.commands
    assert command[0] == "nvidia-smi" and command[-2:] == ["-i", f"GPU-{GPU.uuid}"]


def test_it_runs_once_a_second(program: Any) -> None:
    card = open_nvidia_smi(GPU)
    program.lines = [LINE.replace("1980", "210").replace("37 %", "4 %")]
    clocks = []
    for program.now in (0.5, 0.9, 1.0, 1.1):
        clocks.append(card.read().clock_mhz)
    assert clocks == [1980, 1980, 210, 210] and len(program.commands) == 2
    assert card.busy() == 0.04 and len(program.commands) == 3, "the load now, not of before"
    program.lines = []
    program.now = 9
    assert card.read() == Reading() and card.busy() is None


def test_what_it_does_not_tell(program: Any) -> None:
    program.lines = ["Card A, [N/A], 580.95, [N/A], [Not Supported], [N/A], [Unknown Error], [N/A], [N/A]"]
    card = open_nvidia_smi(GPU)
    assert card.facts.memory_mib is None
    assert card.read() == Reading() and card.busy() is None


@pytest.mark.parametrize(
    ("gpu", "lines", "error"),
    [
        (GPU, [], "nvidia-smi does not tell what its sensors read"),
        (GPU, ["Field is not a valid field to query."], "nvidia-smi does not tell what its sensors read"),
        (FirstGpu(), [LINE, LINE], "nvidia-smi does not tell which GPU CUDA shows first"),
    ],
)
def test_errors(program: Any, gpu: FirstGpu, lines: list[str], error: str) -> None:
    program.lines = lines
    with pytest.raises(LiraError, match=error):
        open_nvidia_smi(gpu)


def test_the_only_gpu_needs_no_name(program: Any) -> None:
    assert open_nvidia_smi(FirstGpu()).facts.name == "Card A"
    assert "-i" not in program.commands[0]
