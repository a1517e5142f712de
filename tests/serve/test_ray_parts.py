"""The parts of `--ray` that need no Ray: homes of pictures, moved questions, the share of cores."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from PIL import Image

from lira_engine.errors import LiraError
from lira_engine.system.extras import install_line
from lira_runtime.prompts import Question
from lira_serve.api_errors import ApiError, busy
from lira_serve.asked import Asked
from lira_serve.on_ray.answerer import ReplicaLost, ReplicasAnswerer
from lira_serve.on_ray.cluster import check_installed, share
from lira_serve.on_ray.homes import Homes

IDLE = {"one": 0, "two": 0}


def test_a_picture_stays_at_its_home_however_busy_that_is() -> None:
    homes: Homes[str] = Homes()
    home = homes.of("cat", IDLE)
    assert homes.of("cat", IDLE | {home: 9}) == home


def test_new_pictures_go_to_the_least_busy_replica() -> None:
    homes: Homes[str] = Homes()
    assert homes.of("cat", {"one": 2, "two": 1}) == "two"
    assert homes.of("dog", {"one": 2, "two": 3}) == "one"


def test_idle_replicas_share_the_pictures() -> None:
    homes: Homes[str] = Homes()
    found = [homes.of(f"picture {number}", IDLE) for number in range(8)]
    assert found.count("one") == found.count("two") == 4


def test_only_pictures_of_a_lost_replica_move() -> None:
    homes: Homes[str] = Homes()
    before = {name: homes.of(name, IDLE | {"three": 0}) for name in map(str, range(9))}
    after = {name: homes.of(name, IDLE) for name in before}
    assert all(home in IDLE for home in after.values())
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if before[name] == "three"
    }
    again = {name: homes.of(name, IDLE | {"four": 0}) for name in before}
    assert again == after  # a replica that comes takes none away
    assert homes.of("new", IDLE | {"four": 0}) == "four"


def test_pictures_that_nobody_asks_about_are_forgotten() -> None:
    homes: Homes[str] = Homes(most_pictures=2)
    assert homes.of("cat", {"one": 0}) == homes.of("dog", {"one": 0}) == "one"
    homes.of("cat", IDLE)
    homes.of("fox", {"two": 0})  # the dog is forgotten
    assert homes.of("cat", {"one": 9, "two": 0}) == "one"
    assert homes.of("dog", {"one": 9, "two": 0}) == "two"


@pytest.mark.parametrize(
    ("cores", "replicas", "threads", "expected"),
    [
        ([2], None, None, (1, 2)),
        ([2], 2, None, (2, 1)),
        ([8], 3, None, (3, 2)),
        ([4, 4], None, None, (2, 4)),
        ([4, 8], None, None, (2, 4)),
        ([4, 8], 3, None, (3, 4)),
        ([4, 8], 4, 2, (4, 2)),
    ],
)
def test_replicas_share_the_cores(
    cores: list[int], replicas: int | None, threads: int | None, expected: tuple[int, int]
) -> None:
    assert share(cores, replicas, threads) == expected


@pytest.mark.parametrize(("cores", "replicas", "threads"), [([2], 3, None), ([4, 4], 3, 4), ([], None, None)])
def test_too_many_replicas_are_refused(cores: list[int], replicas: int | None, threads: int | None) -> None:
    with pytest.raises(LiraError, match="ask for fewer --replicas or --threads"):
        share(cores, replicas, threads)


def test_a_missing_ray_serve_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "0")  # so that what is set is taken back
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(LiraError) as error:
        check_installed()
    assert install_line("serve,ray") in str(error.value)


def test_an_error_of_a_replica_arrives_as_it_was() -> None:
    error = pickle.loads(pickle.dumps(busy("full", 3)))
    assert isinstance(error, ApiError)
    assert (str(error), error.body(), error.headers()) == (
        "full",
        busy("full", 3).body(),
        {"retry-after": "3"},
    )


class Replicas:
    """Replicas of the test's own. Each question is told what happens by `say`."""

    def __init__(self) -> None:
        self.live = 2
        self.asked: list[str] = []
        self.closed: list[str] = []
        self._told: dict[str, asyncio.Queue[Any]] = {}

    def say(self, name: str, *events: Any) -> None:
        for event in events:
            self._told.setdefault(name, asyncio.Queue()).put_nowait(event)

    async def ask(self, asked: Asked) -> AsyncGenerator[dict[str, Any], None]:
        self.asked.append(asked.text)
        told = self._told.setdefault(asked.text, asyncio.Queue())
        try:
            while (event := await told.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed.append(asked.text)


STARTED = {"type": "started", "queue": 0.0, "replica": "board/1"}
TEXT = {"type": "text", "text": "a"}
LOST = ReplicaLost("a replica was lost")


def finish(scenes: int, size: int) -> dict[str, Any]:
    return {"type": "finish", "cache": {"scenes": scenes, "bytes": size}}


def question(text: str) -> Asked:
    return Asked(Image.new("RGB", (2, 2)), "digest", Question(text), text)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def events(job: Any) -> list[str]:
    return [event["type"] async for event in job]


def test_events_pass_with_the_time_since_the_question_came() -> None:
    async def ask() -> None:
        replicas = Replicas()
        answerer = ReplicasAnswerer(replicas.ask, lambda: 2, 8)
        job = answerer.submit(question("one"))
        assert (answerer.waiting, answerer.answering) == (1, 0)
        replicas.say("one", STARTED, {**TEXT, "t": 99.0})
        started, text = await job.next(), await job.next()
        assert started["replica"] == "board/1" and 0 < started["queue"] < text["t"] < 99
        assert (answerer.waiting, answerer.answering) == (0, 1)
        replicas.say("one", finish(1, 10), None)
        assert await events(job) == ["finish"]
        assert (answerer.waiting, answerer.answering) == (0, 0)

    asyncio.run(ask())


def test_a_waiting_question_moves_and_a_running_answer_is_lost() -> None:
    async def ask() -> None:
        replicas = Replicas()
        answerer = ReplicasAnswerer(replicas.ask, lambda: 2, 8)
        running, waits = (answerer.submit(question(text)) for text in ("running", "waits"))
        replicas.say("running", STARTED, TEXT, LOST)
        replicas.say("waits", LOST, STARTED, TEXT, finish(1, 10), None)
        assert (await running.next())["type"] == "started"
        with pytest.raises(ApiError) as lost:
            await events(running)
        assert (lost.value.status, lost.value.type, lost.value.code) == (503, "server_error", "replica_lost")
        assert lost.value.headers() == {"retry-after": "1"}
        assert await events(waits) == ["started", "text", "finish"]
        assert sorted(replicas.asked) == ["running", "waits", "waits"]  # the running one is not asked again
        assert (answerer.waiting, answerer.answering) == (0, 0)

    asyncio.run(ask())


def test_a_question_does_not_move_for_ever() -> None:
    async def ask() -> None:
        replicas = Replicas()
        answerer = ReplicasAnswerer(replicas.ask, lambda: 2, 8)
        job = answerer.submit(question("deadly"))
        replicas.say("deadly", *[LOST] * 10)
        with pytest.raises(ApiError, match="a replica was lost"):
            await events(job)
        assert len(replicas.asked) == 4

    asyncio.run(ask())


def test_an_error_of_the_answer_reaches_whoever_asked() -> None:
    async def ask() -> None:
        replicas = Replicas()
        job = ReplicasAnswerer(replicas.ask, lambda: 2, 8).submit(question("bad"))
        replicas.say("bad", STARTED, LiraError("a bad question"))
        with pytest.raises(LiraError, match="a bad question"):
            await events(job)

    asyncio.run(ask())


def test_a_cancelled_question_is_given_up_and_frees_its_place() -> None:
    async def ask() -> None:
        replicas = Replicas()
        answerer = ReplicasAnswerer(replicas.ask, lambda: 1, 1)
        running, waits = (answerer.submit(question(text)) for text in ("running", "waits"))
        replicas.say("running", STARTED)
        await running.next()
        with pytest.raises(ApiError, match="2 questions are unfinished") as refused:
            answerer.submit(question("one too many"))
        assert refused.value.status == 503 and int(refused.value.headers()["retry-after"]) >= 1
        waits.cancel()
        assert (answerer.waiting, answerer.answering) == (0, 1)
        answerer.submit(question("next"))
        running.cancel()
        assert answerer.answering == 0
        await settle()
        assert replicas.closed == ["waits", "running"]

    asyncio.run(ask())


def test_without_a_replica_it_is_not_ready() -> None:
    answerer = ReplicasAnswerer(Replicas().ask, lambda: 0, 8)
    assert not answerer.ready
    with pytest.raises(ApiError, match="no replica is ready") as refused:
        answerer.check_room()
    assert refused.value.status == 503


def test_draining_finishes_running_answers_and_refuses_the_others() -> None:
    async def ask() -> None:
        replicas = Replicas()
        answerer = ReplicasAnswerer(replicas.ask, lambda: 1, 8)
        running, waits = (answerer.submit(question(text)) for text in ("running", "waits"))
        replicas.say("running", STARTED)
        await running.next()
        answerer.drain()
        assert not answerer.ready
        with pytest.raises(ApiError, match="shutting down"):
            await events(waits)
        with pytest.raises(ApiError, match="shutting down"):
            answerer.submit(question("late"))
        replicas.say("running", TEXT, finish(1, 10), None)
        assert await events(running) == ["text", "finish"]
        await settle()
        assert sorted(replicas.closed) == ["running", "waits"]

    asyncio.run(ask())


def test_the_replicas_caches_are_added_up_while_they_live() -> None:
    async def ask() -> None:
        live = 2
        replicas = Replicas()
        answerer = ReplicasAnswerer(replicas.ask, lambda: live, 8)

        async def cached(replica: str, scenes: int, size: int) -> Any:
            job = answerer.submit(question("one"))
            replicas.say("one", {**STARTED, "replica": replica}, finish(scenes, size), None)
            return [event async for event in job][-1]["cache"]

        assert await cached("board/1", 1, 10) == {"scenes": 1, "bytes": 10}
        assert await cached("board/2", 2, 30) == {"scenes": 3, "bytes": 40}
        assert await cached("board/1", 4, 40) == {"scenes": 6, "bytes": 70}
        assert await cached("board/3", 1, 10) == {"scenes": 5, "bytes": 50}  # board/2 is gone
        live = 1
        assert await cached("board/3", 1, 10) == {"scenes": 1, "bytes": 10}

    asyncio.run(ask())
