"""Sensors of a board: values in the shapes of jetson-stats, and the names by the real package where it is."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import pytest

from lira_engine.errors import LiraError
from lira_engine.system.card.jetson_stats import JetsonStats, open_jetson_stats
from lira_engine.system.card.sensors import Facts, Reading
from lira_engine.system.machine import Jetson

BOARD = Jetson("Jetson Orin Nano (p3768)", "36.4.3", "6.2")
HARDWARE = {"Model": "Jetson Orin Nano", "CUDA Arch BIN": "8.7", "L4T": "36.4.3"}


def stats() -> dict[str, Any]:
    """What the service sends."""
    gpu = {
        "type": "integrated",
        "status": {"load": 42.5, "3d_scaling": False},
        "freq": {"governor": "nvhost_podgov", "cur": 624750, "min": 306000, "max": 624750},
        "power_control": "auto",
    }
    return {
        "gpu": {"gpu": gpu},
        "mem": {"RAM": {"tot": 7_800_000}, "EMC": {"cur": 2_133_000, "max": 3_199_000}},
        "power": {
            "rail": {"VDD_SOC": {"power": 1900}},
            "tot": {"power": 9750, "avg": 9000, "name": "VDD_IN"},
        },
        # Number, user, GPU, kind, priority, state, processor's load, memory and GPU memory in kB, name.
        "processes": [
            [1, "root", "I", "Graphic", 20, "S", 0.1, 90_000, 12_000, "gnome-shell"],
            [os.getpid(), "me", "I", "Graphic", 20, "R", 90.0, 2_000_000, 3_145_728, "python"],
        ],
        "temperature": {"cpu": {"temp": 50.0, "online": True}, "gpu": {"temp": 48.5, "online": True}},
    }


class Failure(Exception):
    """As jetson-stats' JtopException."""


class Jtop:
    """A client of the service, with the shapes of jetson-stats 7.2."""

    def __init__(self, interval: float = 1.0) -> None:
        assert interval == 1.0
        self.sent = stats()
        self.started = self.closed = False
        self.fails: Exception | None = None
        self.running = True

    def start(self) -> None:
        if self.fails:
            raise self.fails
        self.started = True

    def ok(self, spin: bool = False) -> bool:
        assert spin, "without it a call waits for the next values"
        if self.fails:
            raise self.fails
        return self.running

    def close(self) -> None:
        self.closed = True

    board = {"hardware": HARDWARE}  # noqa: RUF012
    gpu = property(lambda self: self.sent["gpu"])
    memory = property(lambda self: self.sent["mem"])
    power = property(lambda self: self.sent["power"])
    processes = property(lambda self: self.sent["processes"])
    temperature = property(lambda self: self.sent["temperature"])


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Jtop:
    client = Jtop()
    module = ModuleType("jtop")
    vars(module).update(jtop=lambda interval: {1.0: client}[interval], JtopException=Failure)
    monkeypatch.setitem(sys.modules, "jtop", module)
    return client


def check_all(board: JetsonStats) -> None:
    assert board.facts == Facts("Jetson Orin Nano (p3768)", None, "L4T 36.4.3", "8.7")
    assert board.read() == Reading(624.75, 2133, 9.75, 48.5, own_mib=3072)
    assert (board.busy(), board.energy_j(), board.others()) == (0.425, None, None)
    assert (board.source, board.power_of) == ("jetson-stats", "board")


def test_all_that_a_board_tells(service: Jtop) -> None:
    board = open_jetson_stats(BOARD)
    check_all(board)
    assert service.started
    board.close()
    assert service.closed


def test_what_a_board_does_not_tell_is_none_and_the_rest_stays(service: Jtop) -> None:
    board = open_jetson_stats(BOARD)
    whole = vars(board.read())
    for changes, field in (
        ({"power": {}}, "power_w"),  # a board without sensors of power
        ({"power": (9750, 9000)}, "power_w"),  # an older service
        ({"mem": {"RAM": {}}}, "memory_clock_mhz"),
        ({"gpu": {}}, "clock_mhz"),
        ({"processes": []}, "own_mib"),
        ({"processes": stats()["processes"][:1]}, "own_mib"),
        ({"temperature": {}}, "temperature_c"),
        ({"temperature": {"gpu": {"temp": -256, "online": False}}}, "temperature_c"),
    ):
        service.sent = stats() | changes
        assert vars(board.read()) == whole | {field: None}, changes
    service.sent["gpu"] = {}
    assert board.busy() is None


def test_clocks_that_the_service_has_from_nvml_are_mhz(service: Jtop) -> None:
    """On Jetson Thor; 0 is a clock that it could not read."""
    board = open_jetson_stats(BOARD)
    service.sent["gpu"]["gpu"]["freq"]["cur"] = 1575
    assert board.read().clock_mhz == 1575
    service.sent["gpu"]["gpu"]["freq"]["cur"] = 0
    assert board.read().clock_mhz is None


def test_a_service_that_went_away_tells_nothing_old(service: Jtop) -> None:
    board = open_jetson_stats(BOARD)
    service.running = False
    assert board.read() == Reading() and board.busy() is None
    service.running, service.fails = True, Failure("Lost connection with jtop server")
    assert board.read() == Reading() and board.busy() is None


@pytest.mark.parametrize(
    "failure", [Failure("The jtop.service is not active. Please run:\nsudo jtop"), PermissionError(13, "no")]
)
def test_a_service_that_does_not_answer_is_one_line(service: Jtop, failure: Exception) -> None:
    service.fails = failure
    with pytest.raises(LiraError, match="jetson-stats does not answer") as caught:
        open_jetson_stats(BOARD)
    assert "\n" not in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    with pytest.raises(LiraError, match="jetson-stats is not installed: sudo pip3 install"):
        open_jetson_stats(BOARD)


def test_the_real_package_has_these_names() -> None:
    """A client of the real package that gets values as from its service, which runs on boards only."""
    jtop = pytest.importorskip("jtop")
    client = jtop.jtop(interval=1.0)
    client.board  # noqa: B018, waits for what the package reads itself
    client._board["hardware"] = HARDWARE
    client._stats = stats()
    client._gpu._update(client._stats["gpu"])
    client._memory._update(client._stats["mem"])
    client._running = True
    check_all(JetsonStats(client, jtop.JtopException, BOARD))
    client.close()
    with pytest.raises(LiraError, match="jetson-stats does not answer"):
        open_jetson_stats(BOARD)
