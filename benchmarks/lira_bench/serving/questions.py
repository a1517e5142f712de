"""Conversations about the scenes that `python -m lira_nano scenes` writes: what clients ask a server."""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from lira_engine.errors import LiraError

SIZES = ((384, 384), (640, 480), (480, 640), (1024, 768), (256, 256), (320, 200), (800, 600), (1280, 960))
"""Width and height of the pictures, in turn."""

FORMATS = ("rle", "polygons", "png", "svg", "label_studio")
_MANY_TILES = 4
_MOST_TOKENS = 48  # of a free answer


@dataclass(frozen=True)
class Picture:
    """A picture as a client has it: the bytes of a file."""

    name: str
    data: bytes
    media_type: str
    max_tiles: int | None

    @cached_property
    def uri(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Ask:
    """One question. `formats`: asked at /v1/segment, for masks in these formats."""

    text: str
    task: str | None = None
    formats: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Conversation:
    """Questions about a picture, each with those before it as its history."""

    kind: str
    number: int  # of the picture
    picture: Picture
    asks: tuple[Ask, ...]

    def name(self, turn: int) -> str:
        """Return such as "turns of picture 3, question 2"."""
        return f"{self.kind} of picture {self.number}, question {turn + 1}"

    def body(self, turn: int, answers: Sequence[str], stream: bool) -> dict[str, Any]:
        """Return the request of question `turn`, behind the answers so far."""
        ask, tiles = self.asks[turn], self.picture.max_tiles
        if ask.formats:
            return {
                "image": self.picture.uri,
                "text": ask.text,
                "formats": list(ask.formats),
                "max_tiles": tiles,
            }
        messages: list[dict[str, Any]] = []
        for asked, answer in zip(self.asks, answers, strict=False):
            messages += [_user(asked.text), {"role": "assistant", "content": answer}]
        messages.append(_user(ask.text))
        image = {"type": "image_url", "image_url": {"url": self.picture.uri}}
        messages[0] = {"role": "user", "content": [image, *messages[0]["content"]]}
        body: dict[str, Any] = {
            "messages": messages,
            "lira": {"task": ask.task, "max_tiles": tiles},
            "temperature": ask.temperature,
            "seed": ask.seed,
            "max_tokens": ask.max_tokens,
        }
        return body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def conversations(folder: Path) -> list[Conversation]:
    """Return what is asked about the scenes of a folder. Raises LiraError if `folder` has none."""
    try:
        expressions: dict[str, list[str]] = defaultdict(list)
        questions: dict[str, list[str]] = defaultdict(list)
        for ref in json.loads((folder / "refs.json").read_text(encoding="utf-8")):
            expressions[ref["file_name"]] += [one["sent"] for one in ref["sentences"]]
        for line in (folder / "vqa.jsonl").read_text(encoding="utf-8").splitlines():
            asked = json.loads(line)
            questions[asked["image"]].append(asked["question"])
        found: list[Conversation] = []
        for number, name in enumerate(sorted(expressions)):
            picture = _picture(folder / "images" / name, number)
            found += _about(number, picture, expressions[name], questions[name])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise LiraError(
            f"{folder} has no scenes ({error}); expected a folder of `python -m lira_nano scenes`"
        ) from None
    if not found:
        raise LiraError(f"{folder} has no scenes; expected a folder of `python -m lira_nano scenes`")
    return found


def _about(number: int, picture: Picture, expressions: list[str], questions: list[str]) -> list[Conversation]:
    thing, last = expressions[0], expressions[-1]
    free = Ask("What is in this image?", temperature=0.8, seed=number, max_tokens=_MOST_TOKENS)
    formats = FORMATS if number % 2 else FORMATS[: 1 + number % 4]
    asked = {
        "refseg": (Ask(thing, "refseg"),),
        "gcg": (Ask("", "gcg"),),
        "vqa": (Ask(questions[0], "vqa"),),
        "caption": (Ask("", "caption"),),
        "free": (free,),
        "turns": (Ask(last, "refseg"), Ask("", "gcg"), Ask(thing, "refseg")),
        "segment": (Ask(thing, formats=formats),),
    }
    return [Conversation(kind, number, picture, asks) for kind, asks in asked.items()]


def _picture(path: Path, number: int) -> Picture:
    """Return a scene's picture in one of `SIZES`: PNG and JPEG in turn, some for several tiles."""
    file = io.BytesIO()
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize(SIZES[number % len(SIZES)])
    form = "JPEG" if number % 2 else "PNG"
    image.save(file, format=form)
    tiles = _MANY_TILES if number % 4 == 3 else None
    return Picture(path.name, file.getvalue(), f"image/{form.lower()}", tiles)
