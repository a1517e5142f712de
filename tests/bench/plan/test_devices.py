"""The table of devices, and this machine's measurement."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from lira_bench import bandwidth
from lira_bench.plan import devices, this_machine
from lira_bench.plan.device import Device, Family
from lira_bench.plan.devices import DEVICES
from lira_bench.plan.efficiency import EFFICIENCY, Work
from lira_engine.errors import LiraError


def test_the_table_has_all_named_devices() -> None:
    assert devices.names() == [
        "orin-nano",
        "orin-nano-super",
        "orin-nx-8",
        "orin-nx-16",
        "orin-nx-16-super",
        "agx-orin-32",
        "agx-orin-64",
        "thor",
        "rtx-4060",
        "rtx-4090",
        "rtx-5090",
        "this-machine",
    ]


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_every_row_names_its_source(device: Device) -> None:
    assert "https://" in device.source
    assert device.derived, "what is derived is said, or that nothing is"
    assert list(device.watts) == sorted(device.watts) and device.watts[0] > 0 and device.title
    assert min(device.memory_gib, device.bandwidth, device.fp32, device.fp16, device.int8) > 0


@pytest.mark.parametrize(
    ("name", "sparse_int8"),
    [
        ("orin-nano", 40),
        ("orin-nano-super", 67),
        ("orin-nx-8", 70 - 20),
        ("orin-nx-16", 100 - 40),
        ("orin-nx-16-super", 157 - 80),
        ("agx-orin-32", 108),
        ("agx-orin-64", 170),
        ("thor", 1035),
    ],
)
def test_jetson_figures_are_dense_and_of_the_gpu(name: str, sparse_int8: float) -> None:
    """The vendor's figure with structured sparsity, and without the DLA."""
    device = DEVICES[name]
    assert device.int8 == pytest.approx(sparse_int8 / 2, rel=0.02)
    assert device.fp16 == pytest.approx(device.int8 / 2, rel=0.04)


@pytest.mark.parametrize("family", get_args(Family))
def test_every_share_has_a_range_and_a_source(family: Family) -> None:
    efficiency = EFFICIENCY[family]
    assert set(efficiency.compute) == set(get_args(Work))
    for name, share in efficiency.shares().items():
        assert 0 < share.low <= share.value <= share.high <= 1, name
        assert share.source, name
        if share.basis == "guess":
            assert share.high >= 1.25 * share.low, f"{name}: the range of a guess is wide"


def test_what_is_not_known_is_called_a_guess() -> None:
    """No speed is published of 8-bit stages, or of pixel stages, on the GPUs of the table."""
    families: tuple[Family, ...] = ("orin", "thor", "rtx")
    for family in families:
        unknown = {"int8 prefill", "int8 vit", "int8 pixel", "float pixel", "convolution"}
        assert unknown <= guessed(family)
    assert guessed("rtx") == set(EFFICIENCY["rtx"].shares())
    assert not {"int4 prefill", "int8 prefill", "decode bytes"} & guessed("cpu-avx512-vnni")


def guessed(family: Family) -> set[str]:
    return {name for name, share in EFFICIENCY[family].shares().items() if share.basis == "guess"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", "cpu-avx512-vnni"),
        ("flags\t\t: fpu sse2 avx2", "cpu-avx2"),
        ("flags\t\t: fpu avx2 avx_vnni", "cpu-other"),
        ("Features\t: fp asimd asimddp i8mm", "cpu-other"),
        ("model name: avx2", "cpu-other"),
    ],
)
def test_a_cpu_belongs_to_the_family_of_its_instructions(tmp_path: Path, flags: str, expected: str) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor\t: 0\n{flags}\n\nprocessor\t: 1\n")
    assert this_machine.family(facts) == expected
    assert this_machine.family(tmp_path / "absent") == "cpu-other"


def test_unknown_devices_are_refused_with_the_choices() -> None:
    for look in (devices.find, devices.kind_of):
        with pytest.raises(
            LiraError, match=r"device 'orin' is not known; expected one of orin-nano, .*this-machine"
        ):
            look("orin")


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "_SIZE", 256)
    monkeypatch.setattr(this_machine, "_REPEATS", 2)
    monkeypatch.setattr(this_machine, "read_bandwidth", lambda: 12.34)
    this_machine.measured.cache_clear()
    try:
        found = devices.find("this-machine")
    finally:
        this_machine.measured.cache_clear()
    assert (found.kind, found.bandwidth, found.fp16) == ("cpu", 12.3, 0)
    assert found.int4 is not None
    assert 1e-4 < found.fp32 < 100 and 1e-4 < found.int8 < 100 and 1e-4 < found.int4 < 100
    assert 0.1 < found.memory_gib < 2**20
    assert devices.kind_of("this-machine") == "cpu"


def test_bandwidth_is_bytes_over_the_best_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = iter([0.5, 0.25, 0.3, 0.4, 0.6])
    parts: list[int] = []

    def seconds(pool: object, arrays: list) -> float:  # type: ignore[type-arg]
        parts.append(sum(array.nbytes for array in arrays))
        return next(passes)

    monkeypatch.setattr(bandwidth, "_BYTES", 2**20)
    monkeypatch.setattr(bandwidth, "_seconds", seconds)
    assert bandwidth.read_bandwidth(3) == pytest.approx(2**20 / 0.25 / 1e9)
    assert parts == [2**20] * 5, "every pass reads everything, once"


def test_the_bandwidth_of_this_machine_is_plausible() -> None:
    assert 0.2 < bandwidth.read_bandwidth(1) < 5000
    with pytest.raises(ValueError, match="0 threads; expected 1 or more"):
        bandwidth.read_bandwidth(0)
