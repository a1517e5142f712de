"""What `python -m lira_bench.serving` asks, compares and finds wrong, without a server."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lira_bench.serving.client import Reply
from lira_bench.serving.load import _checks, _shares
from lira_bench.serving.overhead import _marked
from lira_bench.serving.plain_loop import PlainLoop
from lira_bench.serving.questions import SIZES, Conversation, conversations
from lira_bench.serving.report import failed
from lira_bench.serving.server import Sample, Watch
from lira_bench.serving.traffic import difference
from lira_engine.errors import LiraError


@pytest.fixture(scope="module")
def asked(accuracy_data: Path) -> list[Conversation]:
    return conversations(accuracy_data)


def test_each_scene_is_asked_about_in_every_way_at_its_own_size(asked: list[Conversation]) -> None:
    kinds = {one.kind for one in asked}
    assert kinds == {"refseg", "gcg", "vqa", "caption", "free", "turns", "segment"}
    assert len(asked) == 6 * len(kinds)
    for one in asked:
        with Image.open(io.BytesIO(one.picture.data)) as image:
            assert image.size == SIZES[one.number]
            assert one.picture.media_type == f"image/{str(image.format).lower()}"


def test_a_later_question_comes_with_the_answers_before_it(asked: list[Conversation]) -> None:
    (talk, *_) = [one for one in asked if one.kind == "turns"]
    body = talk.body(2, ["one", "two"], stream=True)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert [message["content"] for message in body["messages"][1::2]] == ["one", "two"]
    pictures = [part for message in body["messages"] for part in message["content"] if "image_url" in part]
    assert len(pictures) == 1
    data = pictures[0]["image_url"]["url"].partition(",")[2]
    assert base64.b64decode(data) == talk.picture.data
    assert json.loads(json.dumps(body))["lira"] == {"task": "refseg", "max_tiles": None}


def test_a_folder_without_scenes_is_told(tmp_path: Path) -> None:
    with pytest.raises(LiraError, match="expected a folder of `python -m lira_nano scenes`"):
        conversations(tmp_path)


def test_a_marked_picture_is_new_each_time(asked: list[Conversation]) -> None:
    pixels = set()
    for conversation in asked[:8:7]:  # a PNG and a JPEG
        for number in (0, 1, 2, 16, 32, 256, 512):
            marked = _marked(conversation, number).picture
            with Image.open(io.BytesIO(marked.data)) as image:
                pixels.add(image.convert("RGB").tobytes())
    assert len(pixels) == 14


def test_the_first_part_that_differs_is_named() -> None:
    mine = Reply(200, text="a", tokens=[1], masks=[{"counts": "x"}])
    assert difference(mine, Reply(200, text="a", tokens=[1], masks=[{"counts": "x"}])) == ""
    assert difference(mine, Reply(200, text="b", tokens=[1], masks=[{"counts": "x"}])) == "text"
    assert difference(mine, Reply(200, text="a", tokens=[2], masks=[{"counts": "x"}])) == "tokens"
    assert difference(mine, Reply(200, text="a", tokens=[1], masks=[])) == "masks"
    whole = Reply(200, text="a", masks=[{"counts": "x"}])
    assert difference(whole, mine) == ""  # it says nothing of tokens


@pytest.mark.parametrize(
    ("rss", "growth"), [([100, 150, 200, 200, 200], 0), ([100] * 12 + [130] * 8, 30), ([7], 0), ([1, 9], 0)]
)
def test_growth_is_that_from_the_middle(rss: list[int], growth: float) -> None:
    watch = Watch([Sample(second, value, 0, 0, 0.0) for second, value in enumerate(rss)])
    assert watch.growth(lambda one: one.rss) == growth


def test_every_failed_check_and_every_slow_row_is_told() -> None:
    def row(whole: float, stream: float) -> dict[str, Any]:
        return {"kind": "vqa", "new": False, "whole": {"more_ms": whole}, "stream": {"more_ms": stream}}

    record = {
        "load": {"checks": {"one": True, "two": False}},
        "overhead": {"rows": [row(3.0, -1), row(2, 3.1)]},
    }
    assert failed(record) == ["two", "overhead of vqa, kept picture (stream): 3.1 ms, expected at most 3"]


GOOD = {
    "errors": {}, "tracebacks": 0, "answers": 1, "different_answers": 0, "growth_mib": 19.9,
    "growth_files": 4, "growth_threads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "idle", "fails"),
    [
        ({}, True, []),
        ({"errors": {"500": 1}}, True, ["no error but 503s"]),
        ({"tracebacks": 1}, True, ["no error but 503s"]),
        ({"answers": 0}, True, ["no error but 503s"]),
        ({"different_answers": 1}, True, ["answers equal those of the same questions asked alone"]),
        ({"growth_mib": 20.0}, True, ["memory grew by less than 20 MiB from the middle"]),
        ({"growth_files": 5}, True, ["no more open files than clients come and go"]),
        ({"growth_threads": 3}, True, ["no more threads"]),
        ({}, False, ["idle at the end"]),
    ],
)
def test_each_check_of_a_server_under_load_can_fail(
    change: dict[str, Any], idle: bool, fails: list[str]
) -> None:
    checks = _checks(GOOD | change, clients=4, idle=idle)
    assert [name for name, passed in checks.items() if not passed] == fails


def test_shares_are_percentiles_in_milliseconds() -> None:
    found = _shares([milliseconds / 1000 for milliseconds in range(101)])
    assert found == pytest.approx({"count": 101, "p50": 50, "p95": 95, "p99": 99})
    assert _shares([]) == {"count": 0}


class Looked:
    nbytes = 10

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Looking:
    def look(self, image: Image.Image, max_tiles: int | None) -> Looked:
        return Looked()


def test_the_plain_loop_forgets_the_scene_that_it_used_longest_ago(asked: list[Conversation]) -> None:
    loop = PlainLoop(Looking(), most_bytes=25)  # type: ignore[arg-type]
    first, second, third, fourth = list(dict.fromkeys(one.picture for one in asked))[:4]
    scenes = [loop.scene(picture) for picture in (first, second, third)]
    assert loop.scene(first) is scenes[0]
    loop.scene(fourth)
    assert [scene.closed for scene in scenes] == [False, True, False]  # type: ignore[attr-defined]
    assert loop.scene(first) is scenes[0]
