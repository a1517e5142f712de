"""`--ray`: replicas of lira-nano on a Ray cluster of this machine, one of which is killed.

An answer with a seed stops at its first token until the test lets it go on: so it is known what runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from PIL import Image

from lira_engine.errors import LiraError
from lira_runtime import Lira
from lira_runtime.rle import encode
from lira_serve.answering import answer
from lira_serve.asked import Asked, Event
from lira_serve.desk import Desk
from lira_serve.engines import warm_up
from lira_serve.on_ray.answerer import ReplicasAnswerer
from lira_serve.on_ray.cluster import check_installed, joined
from lira_serve.settings import Settings
from lira_serve.worker import Job, Worker

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # of Ray

WAIT = 60.0
QUEUE = 3
STAR: dict[str, Any] = {"text": "the orange star", "lira": {"task": "refseg"}}
ALL: dict[str, Any] = {"text": "", "lira": {"task": "gcg"}}
FISH: dict[str, Any] = {"text": "Is there a fish in the image? Please answer yes or no."}


def gated(folder: Path) -> Callable[[Settings], Worker[Desk, Asked]]:
    """A worker whose answers with a seed stop at their first token until there is a file `go-SEED`."""

    class Noting(Worker[Desk, Asked]):
        def _forget(self, job: Job[Asked]) -> None:
            super()._forget(job)
            (folder / f"left-{job.asked.question.seed}").touch()

    def waiting(desk: Desk, asked: Asked) -> Iterator[Any]:
        seed, tokens = asked.question.seed, 0
        try:
            for event in answer(desk, asked):
                tokens += event["type"] == "text"
                yield event
                if seed and tokens:
                    (folder / f"at-{seed}").touch()
                while seed and tokens and not any((folder / f"go-{one}").exists() for one in (seed, "all")):
                    time.sleep(0.005)
        finally:
            (folder / f"tokens-{seed}").write_text(str(tokens))

    return lambda settings: Noting(lambda: Desk(settings), warm_up, waiting, settings.queue)


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Answerer(ReplicasAnswerer):
    """Notes what it takes, and who answers; stands where the engines' thread stands elsewhere."""

    def __init__(self, found: Any, most_waiting: int) -> None:
        super().__init__(self._noting, found.live, most_waiting)
        self.start = lambda: found
        self.taken = 0
        self.replicas: list[str] = []
        self._found = found

    def submit(self, asked: Asked) -> Job[Asked]:
        job = super().submit(asked)
        self.taken += 1
        return job

    async def _noting(self, asked: Asked) -> AsyncGenerator[Event, None]:
        async with aclosing(self._found.ask(asked)) as events:
            async for event in events:
                if event["type"] == "started":
                    self.replicas.append(event["replica"])
                yield event

    def wait_until_warm(self) -> bool:
        return True

    def close(self) -> None:
        pass


@dataclass
class Cluster:
    """A server with two replicas."""

    answerer: Answerer
    live: Callable[[], int]
    served: Any
    folder: Path
    serve: SimpleNamespace
    threads: ThreadPoolExecutor
    pictures: Iterator[Image.Image]
    numbers: Iterator[int]

    def picture(self) -> str:
        """A new picture."""
        found: str = self.serve.data_uri(next(self.pictures))
        return found

    def two_pictures(self) -> tuple[str, str, str, str]:
        """Two pictures that different replicas have been asked about, and these replicas."""
        one, two = self.picture(), self.picture()
        seed, held = self.hold(one)
        first = self.replica()
        self.answer(two, **STAR)
        second = self.replica()
        self.release(seed)
        message(held)
        assert first != second
        return one, two, first, second

    def ask(self, picture: str, text: str, **fields: Any) -> Future[Any]:
        """Ask in a thread; the response. Returns when the question was taken or refused."""
        body = {"messages": [self.serve.question(text, picture)], **fields}
        return self.post(body)

    def post(self, body: dict[str, Any]) -> Future[Any]:
        def posted() -> Any:
            with self.served.client() as client:
                return client.post("/v1/chat/completions", json=body)

        before = self.answerer.taken
        asked = self.threads.submit(posted)
        until(lambda: asked.done() or self.answerer.taken > before, "the question was not taken")
        return asked

    def hold(self, picture: str, **fields: Any) -> tuple[int, Future[Any]]:
        """Ask, and wait until the answer stopped at its first token; its seed, and the response."""
        seed, before = next(self.numbers), self.answerer.answering
        asked = self.ask(picture, **STAR, seed=seed, **fields)
        self.held(seed, before)
        return seed, asked

    def held(self, seed: int, before: int) -> None:
        at = self.folder / f"at-{seed}"
        until(lambda: at.exists() and self.answerer.answering > before, "the answer did not begin")

    def release(self, seed: int) -> None:
        (self.folder / f"go-{seed}").touch()

    def answer(self, picture: str, text: str, **fields: Any) -> dict[str, Any]:
        return message(self.ask(picture, text, **fields))

    def replica(self) -> str:
        """The replica of the last answer that began."""
        return self.answerer.replicas[-1]

    def kill(self, replica: str) -> None:
        os.kill(int(replica.partition("/")[2]), signal.SIGKILL)

    def heal(self, gone: str, left: str) -> None:
        """Wait for another replica than these."""

        def new() -> bool:
            self.answer(self.picture(), **STAR)
            return self.replica() not in (gone, left)

        until(new, "no other replica came")
        until(lambda: self.live() == 2, "the other replica is not counted")


def message(asked: Future[Any]) -> dict[str, Any]:
    response = asked.result(WAIT)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["choices"][0]["message"]
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers have the same text and masks."""
    texts, masks = (
        [said["lira"]["raw_text"] for said in (one, other)],
        [[mask["rle"] for mask in said["lira"]["masks"]] for said in (one, other)],
    )
    return bool(texts[0] == texts[1] and masks[0] == masks[1])


@pytest.fixture(scope="module")
def cluster(
    nano_settings: Settings,
    serve: SimpleNamespace,
    pictures: Iterator[Image.Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    with patch.dict(os.environ):
        os.environ.pop("RAY_ADDRESS", None)
        if "ray" in sys.modules:  # imported by another test: too late for a token
            os.environ["RAY_AUTH_MODE"] = "disabled"
        try:
            check_installed()
        except LiraError as error:
            pytest.skip(str(error))
        import ray

        from lira_serve.on_ray.deployment import deployed

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import a test
        folder = tmp_path_factory.mktemp("gates")
        settings = replace(nano_settings, queue=QUEUE, threads=1)
        with (
            patch.object(ray, "init", partial(ray.init, num_cpus=4)),  # a third replica has room
            joined(),
            deployed(settings, 2, gated(folder)) as found,
            ThreadPoolExecutor() as threads,
        ):
            answerer = Answerer(found, settings.queue)
            with serve.serving(settings, lambda settings: answerer) as served:
                yield Cluster(answerer, found.live, served, folder, serve, threads, pictures, count(1))
                (folder / "go-all").touch()  # whatever failed


def test_an_answer_is_the_runtimes(cluster: Cluster, lira: Lira, sample: str) -> None:
    expected = lira.look(sample).ask(task="refseg", expression=STAR["text"])
    found = cluster.answer(cluster.serve.data_uri(), **STAR)
    assert found["lira"]["raw_text"] == expected.raw_text
    assert [mask["rle"] for mask in found["lira"]["masks"]] == [
        encode(mask.binary) for mask in expected.masks
    ]


def test_a_question_goes_to_the_replica_that_has_its_picture(cluster: Cluster) -> None:
    one, two, first, second = cluster.two_pictures()
    for picture, home in ((one, first), (two, second), (one, first)):
        found = cluster.answer(picture, **FISH)
        assert found["lira"]["scene"] == "kept"
        assert cluster.replica() == home


def test_two_replicas_answer_at_the_same_time(cluster: Cluster) -> None:
    one, two, *_ = cluster.two_pictures()
    held = [cluster.hold(picture) for picture in (one, two)]
    assert cluster.answerer.answering == 2
    for seed, _ in held:
        cluster.release(seed)
    assert same(*(message(asked) for _, asked in held))


def test_a_conversation_finds_its_turns(cluster: Cluster) -> None:
    picture = cluster.picture()
    said = cluster.serve.question(FISH["text"], picture)
    first = message(cluster.post({"messages": [said]}))
    home = cluster.replica()
    turns = [said, {"role": "assistant", "content": first["content"]}, cluster.serve.question(FISH["text"])]
    second = message(cluster.post({"messages": turns}))
    assert cluster.replica() == home
    assert (second["lira"]["history"]["turns"], second["lira"]["history"]["as_text"]) == (1, 0)
    assert second["lira"]["history"]["rows_kept"] > 0


def test_what_is_wrong_with_a_question_is_told(cluster: Cluster) -> None:
    asked = cluster.ask(cluster.picture(), "a star", lira={"task": "gcg"})
    response = asked.result(WAIT)
    assert response.status_code == 400
    assert "task gcg has its own question" in response.json()["error"]["message"]


def test_more_than_may_wait_are_refused_and_the_others_answered(cluster: Cluster) -> None:
    one, two, *_ = cluster.two_pictures()
    held = [cluster.hold(picture) for picture in (one, two)]
    waiting = [cluster.ask(picture, **STAR) for picture in (one, two, one)]
    assert (cluster.answerer.answering, cluster.answerer.waiting) == (2, QUEUE)
    refused = cluster.ask(one, **STAR).result(WAIT)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    for seed, _ in held:
        cluster.release(seed)
    assert all(message(asked)["lira"]["masks"] for asked in (*waiting, *(asked for _, asked in held)))


def test_a_client_that_leaves_frees_its_replica_within_one_token(cluster: Cluster) -> None:
    picture, seed = cluster.picture(), next(cluster.numbers)
    assert message(cluster.ask(picture, **ALL))["lira"]["raw_text"].count(" ") > 8
    messages = [cluster.serve.question(ALL["text"], picture)]
    body = {"messages": messages, "lira": ALL["lira"], "stream": True, "seed": seed}
    with (
        cluster.served.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        assert any('"type":"text"' in line for line in response.iter_lines())
        waits = cluster.ask(picture, **FISH)
    until((cluster.folder / f"left-{seed}").exists, "the replica was not told")
    assert cluster.answerer.answering == 0
    cluster.release(seed)
    assert message(waits)["content"]
    assert (cluster.folder / f"tokens-{seed}").read_text() == "2"  # the one that it stopped at, and the next


@pytest.mark.parametrize("stream", [True, False])
def test_a_killed_replica_loses_nothing_but_its_running_answer(cluster: Cluster, stream: bool) -> None:
    one, two, lost, left = cluster.two_pictures()
    _, running = cluster.hold(one, stream=stream)
    seed, other = cluster.hold(two)
    questions = [(two, STAR), (one, STAR), (two, FISH), (one, FISH)]
    waiting = [cluster.ask(picture, **text) for picture, text in questions[1:]]
    cluster.kill(lost)

    response = running.result(WAIT)
    if stream:
        assert response.status_code == 200
        *_, name, data = [line for line in response.text.splitlines() if line]
        assert name == "event: error"
        error = json.loads(data.removeprefix("data: "))["error"]
    else:
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "replica_lost")

    cluster.release(seed)
    found = [message(asked) for asked in (other, *waiting)]
    alone = [cluster.answer(picture, **text) for picture, text in questions]
    assert [same(*both) for both in zip(found, alone, strict=True)] == [True] * 4

    # The pictures of the lost replica are looked at by the other one, and its turns are read as text.
    turns = [
        cluster.serve.question(STAR["text"], one),
        {"role": "assistant", "content": "It is."},
        cluster.serve.question(FISH["text"]),
    ]
    lira = message(cluster.post({"messages": turns}))["lira"]
    assert (lira["scene"], lira["history"]["as_text"]) == ("kept", 1)
    assert cluster.replica() == left
    cluster.heal(lost, left)


def test_why_a_replica_does_not_start_is_told(cluster: Cluster, nano_bundle: Path) -> None:
    from lira_serve.engines import worker
    from lira_serve.on_ray.deployment import deployed

    settings = Settings(nano_bundle, precision="int8", threads=1)
    with (
        pytest.raises(LiraError, match=r"a replica did not start: .*lira-edge build"),
        deployed(settings, 1, worker),
    ):
        pass
