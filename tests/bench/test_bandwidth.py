"""The bandwidth of a GPU's memory: bytes read plus written over the best pass, by a driver that records."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lira_bench import bandwidth
from lira_engine.errors import LiraError

GIB = 2**30


class Memory:
    def __init__(self, driver: Gpu, size: int) -> None:
        self.address, self.size, self._driver = 0x1000 * len(driver.live), size, driver

    def free(self) -> None:
        assert self._driver.inside and not self._driver.queued, "freed while a copy may read it"
        self._driver.live.remove(self)


class Gpu:
    """A driver whose copies take time when the host waits for them, by a clock of its own."""

    device = "Stand-in sm_89"
    lock = threading.Lock()

    def __init__(self, gb_per_s: float, room: int = 8 * GIB) -> None:
        self.rate, self.room, self.now = gb_per_s, room, 0.0
        self.live: list[Memory] = []
        self.filled: list[Memory] = []
        self.queued: list[int] = []
        self.inside = False

    @contextmanager
    def current(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    def allocate(self, size: int) -> Memory:
        if sum(one.size for one in self.live) + size > self.room:
            raise LiraError("no room")
        self.live.append(Memory(self, size))
        return self.live[-1]

    def stream(self) -> Gpu:
        return self

    def synchronize(self) -> None:
        self.now += sum(self.queued) / (self.rate * 1e9)
        self.queued.clear()

    def zero(self, buffer: Memory, stream: Any) -> None:
        self.filled.append(buffer)
        self.queued.append(10 * buffer.size)  # the first touch is slow

    def copy(self, to: Memory, source: Memory, size: int, stream: Any) -> None:
        assert to is not source and {to, source} <= {*self.live} and source in self.filled
        assert size <= min(to.size, source.size)
        self.queued.append(2 * size)


@pytest.mark.parametrize("rate", [68.0, 3350.0])
def test_a_gpus_bandwidth_is_what_a_copy_reads_and_writes(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(rate)
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: gpu.now)
    assert bandwidth.copy_bandwidth(gpu) == pytest.approx(rate)  # type: ignore[arg-type]
    assert gpu.live == [] and gpu.now < 1.5


@pytest.mark.parametrize("room", [0, GIB // 2])
def test_a_gpu_without_room_keeps_nothing(room: int) -> None:
    gpu = Gpu(100, room)
    with pytest.raises(LiraError, match="no room"):
        bandwidth.copy_bandwidth(gpu)  # type: ignore[arg-type]
    assert gpu.live == []
