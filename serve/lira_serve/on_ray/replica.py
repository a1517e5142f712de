"""A replica: a process of Ray Serve that owns the engines of one bundle."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable

from lira_serve.asked import Asked, Event
from lira_serve.desk import Desk
from lira_serve.model_info import ModelInfo
from lira_serve.settings import Settings
from lira_serve.worker import Worker

OpenWorker = Callable[[Settings], Worker[Desk, Asked]]


class Replica:
    """The engines' thread, behind Ray Serve. It is there for calls when its warm-up answer was given."""

    def __init__(self, settings: Settings, open_worker: OpenWorker) -> None:
        """Open the engines and warm them up. Raises LiraError as `Lira.open` does."""
        self._name = f"{socket.gethostname()}/{os.getpid()}"
        self._worker = open_worker(settings)
        self._info = self._worker.start().info
        if not self._worker.wait_until_warm():
            assert self._worker.failure is not None
            raise self._worker.failure

    async def info(self) -> ModelInfo:
        """Return what is served."""
        return self._info

    async def answer(self, asked: Asked) -> AsyncIterator[Event]:
        """Yield an answer's events; the first has the name of this replica, its machine and process.

        Raises what the answer raises. The question is given up within one token when the caller cancels.
        """
        job = self._worker.submit(asked)
        try:
            async for event in job:
                yield {**event, "replica": self._name} if event["type"] == "started" else event
        finally:
            job.cancel()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces this replica if it raises."""
        if self._worker.failure is not None:
            raise RuntimeError("the engines' thread has ended") from self._worker.failure
