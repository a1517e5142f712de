"""The table of devices, and this machine's measurement."""

from __future__ import annotations

import pytest

from lira_bench import bandwidth
from lira_bench.plan import devices, this_machine
from lira_bench.plan.device import Device
from lira_bench.plan.devices import DEVICES
from lira_bench.plan.efficiency import EFFICIENCY
from lira_engine.errors import LiraError


def test_the_table_has_all_named_devices() -> None:
    assert devices.names() == [
        "orin-nano",
        "orin-nano-super",
        "orin-nx-8",
        "orin-nx-16",
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
    assert device.power and device.title
    assert min(device.memory_gib, device.bandwidth, device.fp32, device.fp16, device.int8) > 0


@pytest.mark.parametrize(
    ("name", "sparse_int8"),
    [
        ("orin-nano", 40),
        ("orin-nano-super", 67),
        ("orin-nx-8", 70 - 20),
        ("orin-nx-16", 100 - 40),
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


def test_gpu_efficiencies_are_called_assumed() -> None:
    assert all("NOT measured" in EFFICIENCY[device.kind].basis for device in DEVICES.values())
    assert "NOT" not in EFFICIENCY["cpu"].basis


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
