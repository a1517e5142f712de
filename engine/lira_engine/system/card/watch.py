"""Look at sensors, again and again, while something runs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from lira_engine.system.card.sensors import Reading, Sensors

_PERIOD = 0.1  # seconds
_LOOKS_PER_POLL = 10  # programs are asked for once a second: NVML has one sample of each in that time


class Watch:
    """Reads `sensors` in a thread for the time of a `with` block.

    Attributes:
        readings: at least two, about ten a second. seconds: that the block took. energy_j: that it used, by a
            counter; None where there is none, or where it began anew.
        others: mean share of the GPU that other programs used, by name; None if that is not told.
        cpu_s: processor seconds that reading took.
    """

    def __init__(self, sensors: Sensors) -> None:
        self._sensors = sensors
        self._ended = threading.Event()
        self.readings: list[Reading] = []
        self.others: Mapping[str, float] | None = None
        self.energy_j: float | None = None
        self.seconds = self.cpu_s = 0.0

    def __enter__(self) -> Watch:
        self._sensors.others()  # forget what was before
        self._counter = self._sensors.energy_j()
        self._started = time.perf_counter()
        self._thread = ThreadPoolExecutor(1)
        self._look: Future[None] = self._thread.submit(self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._started
        last = self._sensors.energy_j()
        if self._counter is not None and last is not None and last >= self._counter:
            self.energy_j = last - self._counter
        self._ended.set()
        self._thread.shutdown()
        self._look.result()

    def _read(self) -> None:
        begun = time.thread_time()
        used: Counter[str] = Counter()
        polls = 0
        while True:
            ends = self._ended.is_set()
            self.readings.append(self._sensors.read())
            if ends or len(self.readings) % _LOOKS_PER_POLL == 0:
                found = self._sensors.others()
                polls += found is not None
                used.update(found or {})  # type: ignore[arg-type]
            if ends:
                break
            self._ended.wait(_PERIOD)
        if polls:
            self.others = {name: share / polls for name, share in used.items()}
        self.cpu_s = time.thread_time() - begun
