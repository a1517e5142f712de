"""One thread owns the engines and answers one question at a time, first come first served.

Engines, scenes and KV caches are used by one thread only. Everything else, HTTP included, runs in an event
loop, which hands over questions and takes events.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Generic, Protocol, TypeVar

from lira_engine.errors import BundleChanged, DeviceFailed
from lira_serve.api_errors import ApiError, busy
from lira_serve.asked import Event


class Desk(Protocol):
    """What the thread owns."""

    def close(self) -> None: ...


D = TypeVar("D", bound=Desk)


A = TypeVar("A")  # a question
Answer = Callable[[D, A], Iterator[Event]]


class Job(Generic[A]):
    """A question on its way. Iterate over it for its events; `cancel` frees its place within one event."""

    def __init__(self, asked: A, on_cancel: Callable[[Job[A]], None]) -> None:
        self.asked = asked
        self._on_cancel = on_cancel
        self._loop = asyncio.get_running_loop()
        self._made: deque[Event | BaseException | None] = deque()  # and not yet taken
        self._arrived = asyncio.Event()
        self._held = False
        self._submitted = time.perf_counter()
        self._over = False  # read and written by the event loop alone
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the events. Raises what the work raised."""
        while (event := await self.next()) is not None:
            yield event

    async def next(self) -> Event | None:
        """Return the next event, or None after the last one. Raises what the work raised."""
        if self._over:
            return None
        while not self._made:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._made.popleft()
        if event is None or isinstance(event, BaseException):
            self._over = True
        if isinstance(event, BaseException):
            raise event
        return event

    def hold(self) -> None:
        """Hand all events over together with the last one: to wake the event loop for each takes time."""
        self._held = True

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self.cancelled = True
        self._on_cancel(self)

    def run(self, answer: Callable[[A], Iterator[Event]]) -> None:
        """Answer, in the worker's thread. Raises BundleChanged and DeviceFailed, which end it; hands all else
        over."""
        self.put({"type": "started", "queue": self.age})
        try:
            with closing(answer(self.asked)) as events:  # type: ignore[type-var]
                for event in events:
                    self.put({**event, "t": self.age})
                    if self.cancelled:
                        break
            self.put(None)
        except (BundleChanged, DeviceFailed) as error:
            self.put(error)
            raise  # the engines cannot be trusted any more, or a CUDA context that failed runs no more
        except BaseException as error:
            self.put(error)

    @property
    def age(self) -> float:
        """Seconds since the question was submitted."""
        return time.perf_counter() - self._submitted

    def put(self, event: Event | BaseException | None) -> None:
        """Hand an event, an error or the end (None) to the event loop. From any thread."""
        self._made.append(event)
        if self._held and isinstance(event, Mapping):
            return
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._arrived.set)


class Worker(Generic[D, A]):
    """The thread, and the questions that wait for it."""

    def __init__(
        self,
        open_desk: Callable[[], D],
        warm_up: Callable[[D], None],
        answer: Answer[D, A],
        most_waiting: int,
        weigh: Callable[[Sequence[A]], int] = lambda asked: 0,
        most_weight: int = 0,
    ) -> None:
        """The first three functions run in the thread; `answer` yields events, each with a `type`.

        At most `most_waiting` questions wait, and several only if they weigh at most `most_weight` together.
        """
        self._open_desk = open_desk
        self._warm_up = warm_up
        self._answer = answer
        self._most_waiting = most_waiting
        self._weigh = weigh
        self._most_weight = most_weight
        self._waiting: deque[Job[A]] = deque()
        self._changed = threading.Condition()
        self._opened = threading.Event()
        self._desk: D | None = None
        self._failure: BaseException | None = None
        self._warm = threading.Event()
        self._running: Job[A] | None = None
        self._draining = False
        self._seconds = 1.0  # of an answer, on average
        self._thread = threading.Thread(target=self._live, name="lira", daemon=True)

    def open(self) -> None:
        """Open the engines already, in the calling thread. Raises what opening raises."""
        self._desk = self._open_desk()

    def start(self) -> D:
        """Open the engines, unless they are open, and then answer. Raises what opening raises; the warm-up
        runs on afterwards.

        Returns what the thread owns, whose constants alone may be read by others.
        """
        self._thread.start()
        self._opened.wait()
        if self._desk is None:
            assert self._failure is not None
            raise self._failure
        return self._desk

    @property
    def ready(self) -> bool:
        """Whether the warm-up answer was given, and questions are taken."""
        return self._warm.is_set() and not self._draining and self._failure is None

    def wait_until_warm(self) -> bool:
        """Wait for the warm-up answer. Returns False if the thread ended without it."""
        while not self._warm.wait(0.05):
            if not self._thread.is_alive():
                return False
        return True

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread, apart from `close`."""
        return self._failure

    @property
    def waiting(self) -> int:
        """Number of questions that wait."""
        return len(self._waiting)

    @property
    def answering(self) -> int:
        """Number of questions that are being answered: 0 or 1."""
        return int(self._running is not None)

    def check_room(self) -> None:
        """Raises ApiError (503) if a question could not be taken now."""
        if self._draining:
            raise busy("the server is shutting down; expected a running one: ask again later", 5)
        if self._failure is not None:
            raise _ended()
        if not self._warm.is_set():
            raise busy("the engines are warming up: ask again in a moment", 1)
        # A question is waiting only until the thread takes it: with an idle thread there is always room.
        if len(self._waiting) >= self._most_waiting + (self._running is None):
            raise self._busy(f"{len(self._waiting)} questions wait, as many as may (--queue)")

    def submit(self, asked: A) -> Job[A]:
        """Queue a question. Raises ApiError (503) if too many wait."""
        with self._changed:
            self.check_room()
            job = Job(asked, self._forget)
            waiting = [one.asked for one in (*self._waiting, job)]
            if self._waiting and self._weigh(waiting) > self._most_weight:
                raise self._busy("the pictures of the questions that wait are as large as they may be")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _busy(self, reason: str) -> ApiError:
        wait = max(1, math.ceil(self._seconds * (len(self._waiting) + 1)))
        return busy(f"{reason}: ask again later", wait)

    def drain(self) -> None:
        """Take no more questions, and refuse those that wait; the running answer goes on. From a signal
        handler or any thread."""
        self._draining = True
        error = busy("the server is shutting down; expected a running one: ask again later", 5)
        # A signal handler must not wait for a lock.
        threading.Thread(target=self._refuse, args=(error,)).start()

    def close(self, seconds: float | None = None) -> None:
        """Drain, wait for the running answer, close the engines."""
        self.drain()
        self._thread.join(seconds)

    def _refuse(self, error: ApiError) -> None:
        """Tell all questions that wait."""
        with self._changed:
            refused, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for job in refused:
            job.put(error)

    def _forget(self, job: Job[A]) -> None:
        """Free the place of a cancelled question."""
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def _live(self) -> None:
        if self._desk is None:
            try:
                self.open()
            except BaseException as error:
                self._failure = error
                self._opened.set()
                return
        assert self._desk is not None
        desk = self._desk
        self._opened.set()
        try:
            self._warm_up(desk)
            self._warm.set()
            while (job := self._next()) is not None:
                started = time.perf_counter()
                job.run(partial(self._answer, desk))
                self._seconds += 0.2 * (time.perf_counter() - started - self._seconds)
                self._running = job = None
        except BaseException as error:
            self._failure = error
            self._refuse(_ended())
        finally:
            desk.close()

    def _next(self) -> Job[A] | None:
        with self._changed:
            while not self._waiting:
                if self._draining:
                    return None
                self._changed.wait()
            self._running = self._waiting.popleft()
            return self._running


def _ended() -> ApiError:
    return ApiError(500, "the engines' thread has ended: restart the server", "server_error")
