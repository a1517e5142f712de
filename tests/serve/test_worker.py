"""The thread that answers, with a desk of the test's own in place of engines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from lira_engine.errors import DeviceFailed
from lira_runtime.prompts import Question
from lira_serve.api_errors import ApiError
from lira_serve.asked import Asked
from lira_serve.engines import picture_bytes
from lira_serve.worker import Worker

WAIT = 10.0


class Desk:
    """Answers a question with numbered events, each after `gate` lets one through."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.warm = threading.Event()
        self.began: list[str] = []
        self.ended: list[str] = []
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def answer(self, question: str) -> Iterator[dict[str, Any]]:
        self.began.append(question)
        try:
            for number in range(3):
                assert self.gate.acquire(timeout=WAIT)
                if question == "gone":
                    raise DeviceFailed("CUDA failed: an illegal memory access")
                if question == "bad":
                    raise ValueError("a bad question")
                yield {"type": "text", "number": number}
        finally:
            self.ended.append(question)

    def let(self, events: int) -> None:
        self.gate.release(events)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.let(1000)


def opened(desk: Desk, waiting: int = 2, warm: bool = True) -> Worker[Desk, str]:
    worker = Worker(lambda: desk, lambda desk: None if warm else assert_set(desk.warm), Desk.answer, waiting)
    assert worker.start() is desk
    if warm:
        assert worker.wait_until_warm()
    return worker


def assert_set(event: threading.Event) -> None:
    assert event.wait(WAIT)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def numbers(job: Any) -> list[int]:
    return [event["number"] async for event in job if event["type"] == "text"]


def test_answers_come_in_the_order_of_the_questions(desk: Desk) -> None:
    async def ask() -> None:
        worker = opened(desk)
        jobs = [worker.submit(name) for name in ("one", "two")]
        desk.let(6)
        assert [await numbers(job) for job in jobs] == [[0, 1, 2]] * 2
        assert desk.ended == ["one", "two"]
        await asyncio.to_thread(worker.close)
        assert desk.closed

    asyncio.run(ask())


def test_events_come_while_the_answer_goes_on(desk: Desk) -> None:
    async def ask() -> None:
        job = opened(desk).submit("one")
        assert (await job.next())["type"] == "started"
        desk.let(1)
        event = await job.next()
        assert (event["number"], event["t"] > 0) == (0, True)
        assert desk.ended == []

    asyncio.run(ask())


def test_held_events_come_together_with_the_last_one(desk: Desk) -> None:
    async def ask() -> None:
        worker = opened(desk)
        worker.submit("before")
        job = worker.submit("one")
        job.hold()
        first = asyncio.ensure_future(job.next())
        await asyncio.sleep(0)  # it waits
        desk.let(3 + 2)
        await until(lambda: desk.began == ["before", "one"])
        await asyncio.sleep(0.02)
        assert not first.done()
        desk.let(1)
        event = await first
        assert event is not None and event["type"] == "started"
        assert await numbers(job) == [0, 1, 2]
        bad = worker.submit("bad")
        bad.hold()
        desk.let(1)
        with pytest.raises(ValueError, match="a bad question"):
            await numbers(bad)

    asyncio.run(ask())


def test_more_than_may_wait_are_refused_with_a_time(desk: Desk) -> None:
    async def ask() -> None:
        worker = opened(desk, waiting=2)
        worker.submit("running")
        await until(lambda: worker.answering == 1)
        worker.submit("waits"), worker.submit("waits too")
        with pytest.raises(ApiError) as refused:
            worker.submit("one too many")
        assert refused.value.status == 503
        assert refused.value.retry_after is not None and refused.value.retry_after >= 1
        assert worker.waiting == 2

    asyncio.run(ask())


def test_questions_that_weigh_too_much_together_are_refused(desk: Desk) -> None:
    async def ask() -> None:
        worker = Worker(lambda: desk, lambda desk: None, Desk.answer, 5, lambda all: len("".join(all)), 10)
        worker.start()
        assert worker.wait_until_warm()
        worker.submit("running, and long")
        await until(lambda: worker.answering == 1)
        worker.submit("alone it may be heavy").cancel()
        worker.submit("four"), worker.submit("sixsix")
        with pytest.raises(ApiError, match="pictures") as refused:
            worker.submit("x")
        assert refused.value.status == 503 and worker.waiting == 2

    asyncio.run(ask())


def test_no_place_to_wait_still_leaves_an_idle_thread_its_question(desk: Desk) -> None:
    async def ask() -> None:
        worker = opened(desk, waiting=0)
        desk.let(6)
        for _ in range(2):
            assert await numbers(worker.submit("one")) == [0, 1, 2]
            await until(lambda: worker.answering == 0)

    asyncio.run(ask())


def test_a_cancelled_question_frees_its_place_at_once(desk: Desk) -> None:
    async def ask() -> None:
        worker = opened(desk, waiting=1)
        running = worker.submit("running")
        await until(lambda: worker.answering == 1)
        waits = worker.submit("waits")
        waits.cancel()
        assert worker.waiting == 0
        worker.submit("next")
        running.cancel()
        desk.let(1)  # the running answer ends with its next event, not with its third
        await until(lambda: desk.ended == ["running"])
        desk.let(3)
        await until(lambda: desk.ended == ["running", "next"])
        assert desk.began == ["running", "next"]

    asyncio.run(ask())


def test_an_error_reaches_whoever_asked_and_the_thread_goes_on(desk: Desk) -> None:
    async def ask() -> None:
        worker = opened(desk)
        bad, good = worker.submit("bad"), worker.submit("good")
        desk.let(4)
        with pytest.raises(ValueError, match="a bad question"):
            await numbers(bad)
        assert await numbers(good) == [0, 1, 2]

    asyncio.run(ask())


def test_a_device_that_failed_ends_the_thread(desk: Desk) -> None:
    """Every later answer would fail, too: the server ends, and what started it may start it again."""

    async def ask() -> None:
        worker = opened(desk)
        gone, waits = worker.submit("gone"), worker.submit("waits")
        desk.let(1)
        with pytest.raises(DeviceFailed, match="illegal memory access"):
            await numbers(gone)
        with pytest.raises(ApiError, match="the engines' thread has ended: restart the server"):
            await numbers(waits)
        assert isinstance(worker.failure, DeviceFailed) and not worker.ready
        with pytest.raises(ApiError, match="restart the server"):
            worker.submit("late")
        await asyncio.to_thread(worker.close)
        assert desk.began == ["gone"] and desk.closed

    asyncio.run(ask())


def test_draining_finishes_the_running_answer_and_refuses_the_others(desk: Desk) -> None:
    async def ask() -> None:
        worker = opened(desk)
        running = worker.submit("running")
        await until(lambda: worker.answering == 1)
        waits = worker.submit("waits")
        worker.drain()
        assert not worker.ready
        with pytest.raises(ApiError, match="shutting down"):
            worker.submit("late")
        with pytest.raises(ApiError, match="shutting down"):
            await numbers(waits)
        desk.let(3)
        assert await numbers(running) == [0, 1, 2]
        await asyncio.to_thread(worker.close)
        assert desk.began == ["running"] and desk.closed

    asyncio.run(ask())


def test_it_is_not_ready_before_the_warm_up_is_over(desk: Desk) -> None:
    async def ask() -> None:
        worker = opened(desk, warm=False)
        assert not worker.ready
        with pytest.raises(ApiError, match="warming up"):
            worker.submit("early")
        desk.warm.set()
        assert await asyncio.to_thread(worker.wait_until_warm)
        assert worker.ready

    asyncio.run(ask())


def test_what_opening_raises_is_raised() -> None:
    def refuse() -> Desk:
        raise OSError("no such bundle")

    with pytest.raises(OSError, match="no such bundle"):
        Worker(refuse, lambda desk: None, Desk.answer, 1).start()


def test_a_failed_warm_up_is_told(desk: Desk) -> None:
    def fail(desk: Desk) -> None:
        raise MemoryError

    worker = Worker(lambda: desk, fail, Desk.answer, 1)
    worker.start()
    assert not worker.wait_until_warm()
    assert isinstance(worker.failure, MemoryError)
    assert desk.closed and not worker.ready


def test_a_picture_that_is_asked_about_twice_weighs_once() -> None:
    small, large = Image.new("RGB", (10, 5)), Image.new("RGB", (100, 50))
    asked = [
        Asked(image, digest, Question("x"), "x")
        for image, digest in ((small, "a"), (large, "b"), (small, "a"))
    ]
    assert picture_bytes(asked) == 4 * (10 * 5 + 100 * 50)
