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
from lira_bench.serving.overhead import _marked
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
