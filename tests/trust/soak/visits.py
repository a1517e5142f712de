"""What is asked: a stream of visits from a seed, the same for the API and for the server.

A visit is a picture of any size with one to eight questions about it, in some of which the client leaves, or
something wrong (see `WRONG`).
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from PIL import Image

from lira_bench.serving.questions import FORMATS, Ask, Conversation, Picture
from lira_nano.scenes import Scene, render_scene

SIZES = ((4000, 3000), (1280, 960), (480, 640), (640, 480), (384, 384), (64, 64), (7, 3), (1, 900), (1, 1))
"""Width and height: from 12 megapixels to a pixel. The first pictures have each of them once, the largest
first: what a process takes at most, it soon has taken."""
_SHARES = (1, 4, 10, 10, 10, 6, 2, 2, 2)
_SCENES = 24
_PICTURES_KEPT = 6
_WRONG = 0.2  # of the visits
_SAME = 0.3  # of the visits ask about a picture of before
_LEAVE = 0.15  # of the questions
_LATEST_LEAVE = 8  # events

WRONG = (
    "a picture that is text", "a picture that is cut", "an empty picture", "an unknown task",
    "a temperature below 0", "too many tiles", "no question", "a question that is too long", "a full context",
)  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """`leaves`: for each question the events after which the client leaves, or None. `wrong`: one of `WRONG`,
    then there is one question."""

    conversation: Conversation
    leaves: tuple[int | None, ...]
    wrong: str = ""


def visits(seed: int) -> Iterator[Visit]:
    """Yield visits, without an end."""
    chance = random.Random(seed)
    recent: list[tuple[int, Picture, Scene]] = []
    number = 0
    while True:
        if recent and chance.random() < _SAME:
            about = chance.choice(recent)
        else:
            about = (number, *_picture(number, chance))
            recent = [*recent[1 - _PICTURES_KEPT :], about]
            number += 1
        if chance.random() < _WRONG:
            wrong = chance.choice(WRONG)
            yield Visit(Conversation(wrong, about[0], about[1], (Ask("What is this?"),)), (None,), wrong)
            continue
        kind, asks = _asks(chance, about[2])
        leaves = tuple(chance.randint(1, _LATEST_LEAVE) if chance.random() < _LEAVE else None for _ in asks)
        yield Visit(Conversation(kind, about[0], about[1], asks), leaves)


def _asks(chance: random.Random, scene: Scene) -> tuple[str, tuple[Ask, ...]]:
    def one(kind: str) -> Ask:
        name = chance.choice(scene.objects).name
        return {
            "refseg": lambda: Ask(f"the {name}", "refseg"),
            "gcg": lambda: Ask("", "gcg"),
            "vqa": lambda: Ask(f"Is there a {name} in the image? Please answer yes or no.", "vqa"),
            "caption": lambda: Ask("", "caption"),
            "free": lambda: Ask(
                "What is in this image?", temperature=0.8, seed=chance.randrange(99), max_tokens=24
            ),
        }[kind]()

    kinds = ("refseg", "gcg", "vqa", "caption", "free")
    kind = chance.choice((*kinds, "segment", "turns", "turns"))
    if kind == "segment":
        formats = tuple(chance.sample(FORMATS, 2))
        return kind, (Ask(f"the {chance.choice(scene.objects).name}", formats=formats),)
    if kind == "turns":
        return kind, tuple(one(chance.choice(kinds)) for _ in range(chance.randint(3, 8)))
    return kind, (one(kind),)


@cache
def _scene(number: int) -> Scene:
    return render_scene(3, number, 384)


def _picture(number: int, chance: random.Random) -> tuple[Picture, Scene]:
    """Return a picture that nobody has asked about: a scene at another size, with a pixel of its own."""
    scene = _scene(number % _SCENES)
    size = SIZES[number] if number < len(SIZES) else chance.choices(SIZES, _SHARES)[0]
    image = Image.fromarray(scene.image).resize(size)
    image.putpixel((0, 0), tuple(number >> shift & 255 for shift in (16, 8, 0)))
    form = "PNG" if image.width < 1000 else "JPEG"
    file = io.BytesIO()
    image.save(file, format=form)
    tiles = 4 if number % 4 == 3 else None
    return Picture(f"{number}", file.getvalue(), f"image/{form.lower()}", tiles), scene
