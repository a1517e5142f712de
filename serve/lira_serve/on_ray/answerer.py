"""Whoever answers where replicas do: waits for them, moves questions of lost ones, keeps the count."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from lira_serve.api_errors import ApiError, busy
from lira_serve.asked import Asked, Event
from lira_serve.worker import Job

_MOST_MOVES = 3
"""A waiting question outlives as many replicas. What kills each of them may be the question itself."""


class ReplicaLost(Exception):
    """The replica that had a question is gone."""


class ReplicasAnswerer:
    """Questions on their way to replicas and back. Belongs to the event loop that submits them."""

    def __init__(
        self,
        ask: Callable[[Asked], AsyncGenerator[Event, None]],
        live: Callable[[], int],
        most_waiting: int,
    ) -> None:
        """ask: hands a question to a replica and yields its events, the first when the answer begins; to
        close it cancels the question; raises ReplicaLost. live: how many replicas take questions.
        most_waiting: questions beside those that are answered."""
        self._ask = ask
        self._live = live
        self._most_waiting = most_waiting
        self._following: dict[Job[Asked], asyncio.Task[None]] = {}
        self._begun: dict[Job[Asked], tuple[str, float]] = {}  # by which replica, at which age
        self._caches: OrderedDict[str, dict[str, int]] = OrderedDict()  # what each replica keeps
        self._draining = False
        self._seconds = 1.0  # of an answer, on average

    @property
    def ready(self) -> bool:
        """Whether a replica is there, and questions are taken."""
        return self._live() > 0 and not self._draining

    @property
    def waiting(self) -> int:
        """Number of questions that wait."""
        return len(self._following) - len(self._begun)

    @property
    def answering(self) -> int:
        """Number of questions that are being answered."""
        return len(self._begun)

    def check_room(self) -> None:
        """Raises ApiError (503) if a question could not be taken now."""
        if self._draining:
            raise _shutting_down()
        live = self._live()
        if not live:
            raise busy("no replica is ready: ask again in a moment", 2)
        if len(self._following) >= self._most_waiting + live:
            wait = max(1, math.ceil(self._seconds * (self.waiting + 1) / live))
            raise busy(
                f"{len(self._following)} questions are unfinished, as many as may be with {live} replicas "
                f"and --queue {self._most_waiting}: ask again later",
                wait,
            )

    def submit(self, asked: Asked) -> Job[Asked]:
        """Send a question. Raises ApiError (503) if too many are unfinished."""
        self.check_room()
        job = Job(asked, self._forget)
        self._following[job] = asyncio.get_running_loop().create_task(self._follow(job, asked))
        return job

    def drain(self) -> None:
        """Take no more questions, and refuse those that wait; the running answers go on. From the event
        loop's thread, also from a signal handler."""
        self._draining = True
        for job, task in list(self._following.items()):
            if job not in self._begun:
                job.put(_shutting_down())
                task.get_loop().call_soon_threadsafe(task.cancel)

    async def _follow(self, job: Job[Asked], asked: Asked) -> None:
        try:
            await self._events(job, asked)
            job.put(None)
        except ReplicaLost as error:
            told = f"{error}: its answer is lost, ask again"
            job.put(ApiError(503, told, "server_error", code="replica_lost", retry_after=1))
        except Exception as error:
            job.put(error)
        finally:
            self._following.pop(job, None)
            self._begun.pop(job, None)

    async def _events(self, job: Job[Asked], asked: Asked) -> None:
        for moves in range(_MOST_MOVES + 1):
            try:
                async with aclosing(self._ask(asked)) as events:
                    async for event in events:
                        job.put({**self._noted(job, event), "t": job.age})
                return
            except ReplicaLost:
                if job in self._begun or moves == _MOST_MOVES:
                    raise

    def _noted(self, job: Job[Asked], event: Event) -> Event:
        """Return an event as seen from here."""
        if event["type"] == "started":
            self._begun[job] = event["replica"], job.age
            return {**event, "queue": job.age}
        if event["type"] == "finish":
            replica, began = self._begun[job]
            self._seconds += 0.2 * (job.age - began - self._seconds)
            return {**event, "cache": self._cached(replica, event["cache"])}
        return event

    def _cached(self, replica: str, cache: dict[str, int]) -> dict[str, int]:
        """Note what a replica keeps; return what all keep together."""
        self._caches[replica] = cache
        self._caches.move_to_end(replica)
        while len(self._caches) > max(1, self._live()):  # of one that is gone
            self._caches.popitem(last=False)
        return {name: sum(one[name] for one in self._caches.values()) for name in cache}

    def _forget(self, job: Job[Asked]) -> None:
        """Free the place of a cancelled question."""
        self._begun.pop(job, None)
        if (task := self._following.pop(job, None)) is not None:
            task.cancel()


def _shutting_down() -> ApiError:
    return busy("the server is shutting down; expected a running one: ask again later", 5)
