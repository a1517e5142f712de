"""Sensors by the real nvidia-ml-py, on a library of stand-in functions."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from lira_engine.errors import LiraError
from lira_engine.system.card.first_gpu import FirstGpu
from lira_engine.system.card.nvml import THROTTLED, Nvml, open_nvml
from lira_engine.system.card.sensors import Facts, Reading

GPU = [FirstGpu(f"00000000-0000-0000-0000-{number:012}") for number in range(12)]
ANY = FirstGpu()
ME = os.getpid()
GIB = 1 << 30


def test_all_that_a_card_tells(nvml: Any) -> None:
    nvml.reasons = 0x1 | 0x4 | 0x20
    nvml.programs = [(ME, GIB), (ME + 1, 2 * GIB)]
    nvml.busy = 37
    card = open_nvml(GPU[1])
    assert card.facts == Facts("Card A", 24 << 10, "580.95", "8.9")
    assert card.read() == Reading(
        1980, 2619, 350.5, 61, frozenset({"power cap", "temperature"}), own_mib=1024, used_mib=3072
    )
    assert (card.energy_j(), card.busy()) == (1e9, 0.37)
    assert (card.source, card.power_of) == ("nvidia-ml-py", "card")
    card.close()
    assert nvml.opened == 0


TEMPERATURES = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
REASONS = ("nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetCurrentClocksEventReasons")
PROGRAMS = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")


@pytest.mark.parametrize("how", ["lacks", "absent"])
@pytest.mark.parametrize(
    ("functions", "fields"),
    [
        (("nvmlDeviceGetClockInfo",), {"clock_mhz", "memory_clock_mhz"}),
        (("nvmlDeviceGetPowerUsage",), {"power_w"}),
        (("nvmlDeviceGetMemoryInfo",), {"used_mib"}),
        (TEMPERATURES, {"temperature_c"}),
        (REASONS, {"throttled"}),
        (PROGRAMS, {"own_mib"}),
        # Functions of another age have other names.
        (TEMPERATURES[:1], set()),
        (TEMPERATURES[1:], set()),
        (REASONS[:1], set()),
        (PROGRAMS[:1], set()),
    ],
)
def test_what_a_card_does_not_tell_is_none_and_the_rest_stays(
    nvml: Any, how: str, functions: tuple[str, ...], fields: set[str]
) -> None:
    """Functions that answer "not supported", or that the library does not have."""
    nvml.programs = [(ME, GIB)]
    setattr(nvml, how, {*functions})
    found = vars(open_nvml(GPU[1]).read())
    assert {name for name, value in found.items() if value is None} == fields


@pytest.mark.parametrize("how", ["lacks", "absent"])
def test_a_card_without_counter_load_and_facts(nvml: Any, how: str) -> None:
    setattr(
        nvml,
        how,
        {
            "nvmlDeviceGetTotalEnergyConsumption",
            "nvmlDeviceGetUtilizationRates",
            "nvmlDeviceGetCudaComputeCapability",
            "nvmlSystemGetDriverVersion",
            "nvmlDeviceGetMemoryInfo",
        },
    )
    card = open_nvml(GPU[1])
    assert (card.energy_j(), card.busy(), card.facts) == (None, None, Facts("Card A"))


def test_the_gpu_is_the_one_that_cuda_shows_first(nvml: Any) -> None:
    nvml.count = 2
    assert open_nvml(GPU[2]).facts.name == "Card B"
    for unknown in (GPU[9], ANY):
        with pytest.raises(LiraError, match="does not know which GPU CUDA shows first"):
            open_nvml(unknown)
    nvml.count = 1
    assert open_nvml(ANY).facts.name == "Card A", "there is no other one"
    nvml.lacks = {"nvmlDeviceGetCount_v2"}
    opened = nvml.opened
    with pytest.raises(LiraError, match=r"shows no GPU \(Not Supported\)"):
        open_nvml(ANY)
    assert nvml.opened == opened, "what was opened is closed"


def test_a_part_of_a_card_has_its_own_memory_and_the_cards_sensors(nvml: Any) -> None:
    nvml.programs = [(ME, GIB)]
    card = open_nvml(GPU[11])
    assert card.facts.name == "Card A MIG 1g.10gb"
    nvml.asked.clear()
    card.read(), card.energy_j(), card.others()
    asked = {name.removeprefix("nvmlDeviceGet"): handle for name, handle in nvml.asked}
    assert asked["ClockInfo"] == asked["PowerUsage"] == asked["TotalEnergyConsumption"] == 0x10
    assert asked["MemoryInfo"] == asked["ComputeRunningProcesses_v3"] == asked["ProcessUtilization"] == 0x11


@pytest.mark.parametrize(
    ("programs", "own"),
    [
        ([(ME, GIB), (ME, GIB)], 2048),
        ([], None),
        ([(ME + 1, GIB)], None),  # in a container
        ([(ME, 2**64 - 1)], None),  # Windows' driver model tells no bytes
    ],
)
def test_memory_of_this_process(nvml: Any, programs: list[tuple[int, int]], own: float | None) -> None:
    nvml.programs = programs
    assert open_nvml(ANY).read().own_mib == own


def test_what_other_programs_use(nvml: Any) -> None:
    nvml.programs = [(7, GIB)]
    card = open_nvml(ANY)
    nvml.programs = [(7, GIB), (ME, GIB), (9, GIB)]
    card.read()
    assert card.others() == {}, "nobody used anything"
    nvml.used = [(7, 40, 100), (ME, 90, 100), (9, 5, 100)]
    assert card.others() == {"python7": 0.4, "python9": 0.05}
    assert card.others() == card.others() == {}, "there is nothing newer"
    nvml.used = [(7, 20, 200), (9, 0, 200)]
    assert card.others() == {"python7": 0.2}
    nvml.lacks = {"nvmlDeviceGetProcessUtilization"}
    assert card.others() is None


def test_in_a_container_a_new_program_may_be_this_process(nvml: Any) -> None:
    """NVML knows it by another number there; those that were there before are others."""
    nvml.programs = [(7, GIB)]
    card = open_nvml(ANY)
    nvml.programs = [(7, GIB), (40_000, GIB)]
    card.read()
    nvml.used = [(7, 40, 100), (40_000, 90, 100)]
    assert card.others() == {"python7": 0.4}


def test_a_process_that_uses_the_gpu_already_is_not_its_own_disturbance(nvml: Any) -> None:
    """In a container: one of those that were there before is this process."""
    nvml.programs = [(40_000, GIB)]
    nvml.used = [(40_000, 90, 100)]
    assert open_nvml(FirstGpu(in_use=True)).others() == {}
    nvml.used = [(40_000, 90, 200)]
    assert open_nvml(ANY).others() == {"python40000": 0.9}


def test_a_program_without_a_name_has_its_number(nvml: Any) -> None:
    nvml.programs = [(7, GIB)]
    nvml.used = [(7, 40, 100)]
    nvml.lacks = {"nvmlSystemGetProcessName"}
    assert open_nvml(ANY).others() == {"process 7": 0.4}


def test_the_words_are_nvmls_bits() -> None:
    pynvml = pytest.importorskip("pynvml")
    bits = {
        name.removeprefix("nvmlClocksThrottleReason"): value
        for name, value in vars(pynvml).items()
        if name.startswith("nvmlClocksThrottleReason")
    }
    idle = bits.pop("GpuIdle"), bits.pop("None"), bits.pop("All", 0)
    assert idle[:2] == (1, 0)
    words = {name: THROTTLED[value] for name, value in bits.items() if value in THROTTLED}
    assert words["SwPowerCap"] == "power cap" and words["HwPowerBrakeSlowdown"] == "power brake"
    assert words["SwThermalSlowdown"] == "temperature" and words["SyncBoost"] == "sync boost"
    assert words["HwThermalSlowdown"] == "temperature (hardware)"
    assert words["ApplicationsClocksSetting"] == "application clocks"
    assert not set(bits.values()) - {*THROTTLED}, "NVML has bits without a word"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(LiraError, match="nvidia-ml-py is not installed: pip install nvidia-ml-py"):
        open_nvml(ANY)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml")

    def fail(name: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", fail)
    with pytest.raises(LiraError, match=r"NVML does not start \(NVML Shared Library Not Found\)"):
        open_nvml(ANY)


def test_a_driver_that_does_not_start(nvml: Any) -> None:
    nvml.lacks = {"nvmlInitWithFlags"}
    with pytest.raises(LiraError, match=r"NVML does not start \(Not Supported\)"):
        open_nvml(ANY)


def test_sensors_are_protocols() -> None:
    from lira_engine.system.card.jetson_stats import JetsonStats
    from lira_engine.system.card.nvidia_smi import NvidiaSmi
    from lira_engine.system.card.sensors import Sensors

    wanted = {name for name in vars(Sensors) if not name.startswith("_")} - {"facts"}
    for kind in (Nvml, JetsonStats, NvidiaSmi):
        assert wanted <= set(vars(kind))
