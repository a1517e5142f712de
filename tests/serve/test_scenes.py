"""Scenes that are kept: under a byte limit, least recently used out first, and never one for two images."""

from __future__ import annotations

import base64
import gc
import io
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lira_runtime import Lira
from lira_runtime.prompts import Question
from lira_runtime.scene import Scene
from lira_serve.answering import answer
from lira_serve.asked import Asked
from lira_serve.pictures import picture_digest
from lira_serve.scenes import SceneCache, scene_key
from lira_serve.settings import Settings
from lira_serve.turns import TurnMemory

RED, BLUE = (220, 30, 30), (30, 60, 220)


def square(colour: tuple[int, int, int], number: int = 0, side: int = 48) -> Image.Image:
    """A square on grey; three bytes of one pixel number it."""
    pixels = np.full((side, side, 3), (120, 125, 130), np.uint8)
    pixels[10:-10, 10:-10] = colour
    pixels[-1, -1] = [number & 255, number >> 8 & 255, number >> 16]
    return Image.fromarray(pixels)


def look_and_ask(cache: SceneCache, image: Image.Image) -> tuple[Scene, bool]:
    """What the engines' thread does for a question."""
    scene, kept = cache.scene(picture_digest(image), image, None)
    scene.ask(task="caption", max_new_tokens=4)
    cache.settle()
    return scene, kept


def test_an_answer_weighs_its_own_scene_alone(lira: Lira, monkeypatch: pytest.MonkeyPatch) -> None:
    """With thousands of scenes, all of them would take longer than the answer."""
    cache = SceneCache(lira, 1 << 30)
    for number in range(5):
        look_and_ask(cache, square(RED, number))
    weighed: list[Scene] = []
    size = Scene.nbytes.fget
    assert size is not None
    monkeypatch.setattr(Scene, "nbytes", property(lambda scene: weighed.append(scene) or size(scene)))
    scene, was_kept = look_and_ask(cache, square(RED, 0))
    assert was_kept and set(weighed) == {scene}
    assert cache.nbytes == sum(size(one) for one in cache._scenes.values())
    cache.clear()


def test_a_scene_that_made_room_takes_no_memory(lira: Lira) -> None:
    """Its picture too, and without waiting for Python's collector."""
    cache = SceneCache(lira, 1 << 30)
    scene, _ = look_and_ask(cache, square(RED))
    seen = weakref.ref(scene)
    del scene
    gc.disable()
    try:
        cache.clear()
        assert seen() is None
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def scene_bytes(lira: Lira) -> int:
    """What a scene of these pictures takes after a first question."""
    cache = SceneCache(lira, 1 << 30)
    look_and_ask(cache, square(RED))
    size = cache.nbytes
    cache.clear()
    assert size > 1 << 20 and cache.nbytes == 0
    return size


def kept(cache: SceneCache, *numbers: int) -> list[int]:
    """Which of the numbered pictures the cache has. Asking for one makes it the most recently used."""
    spec = cache._lira.manifest.preprocessing
    keys = {scene_key(picture_digest(square(RED, number)), spec, None): number for number in numbers}
    return [keys[key] for key in cache._scenes if key in keys]


def test_the_least_recently_used_goes_first(lira: Lira, scene_bytes: int) -> None:
    cache = SceneCache(lira, 3 * scene_bytes + 1000)
    for number in (1, 2, 3):
        assert not look_and_ask(cache, square(RED, number))[1]
    assert kept(cache, 1, 2, 3) == [1, 2, 3] and cache.evictions == 0
    assert look_and_ask(cache, square(RED, 1))[1]  # so 2 is the oldest
    look_and_ask(cache, square(RED, 4))
    assert kept(cache, 1, 2, 3, 4) == [3, 1, 4] and cache.evictions == 1
    assert len(cache) == 3 and cache.nbytes <= 3 * scene_bytes + 1000
    cache.clear()
    assert (len(cache), cache.nbytes, cache.evictions) == (0, 0, 1)


@pytest.mark.parametrize("scenes", [1, 2.5])
def test_the_limit_also_holds_while_a_scene_is_made(
    lira: Lira, scene_bytes: int, scenes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = int(scenes * scene_bytes) + 1000
    cache = SceneCache(lira, limit)
    beside: list[int] = []
    look = lira.look

    def looked(image: Image.Image, **options: Any) -> Scene:
        beside.append(cache.nbytes)
        return look(image, **options)

    monkeypatch.setattr(lira, "look", looked)
    for number in range(5):
        look_and_ask(cache, square(RED, number))
        assert cache.nbytes <= limit
    assert len(beside) == 5 and max(beside) + scene_bytes <= limit
    large = square(BLUE, side=500)  # a megabyte of pixels, of which no scene before it had any
    cache.scene(picture_digest(large), large, None)
    assert beside[-1] + scene_bytes + 4 * (500**2 - 48**2) <= limit or beside[-1] == 0
    cache.clear()


@pytest.mark.parametrize("limit", [0, 1, 100_000])
def test_a_limit_below_one_scene(lira: Lira, limit: int) -> None:
    cache = SceneCache(lira, limit)
    for number in (1, 1, 2):
        _, was_kept = look_and_ask(cache, square(RED, number))
        assert not was_kept and len(cache) == 0 and cache.nbytes == 0
    assert cache.evictions == 3


def test_an_answer_that_is_given_up_leaves_the_limit_as_it_is(lira: Lira) -> None:
    desk: Any = SimpleNamespace(lira=lira, scenes=SceneCache(lira, 0), turns=TurnMemory())
    image = square(RED)
    events = answer(desk, Asked(image, picture_digest(image), Question(None, "caption"), ""))
    assert next(events)["type"] == "look" and next(events)["type"] == "text"
    assert len(desk.scenes) == 1
    events.close()  # type: ignore[attr-defined]
    assert len(desk.scenes) == 0


# Which images are the same


# Numbers of two pictures whose SHA-256 agree in the first 40 bits. Found by trying 2**21 numbers for each
# colour in turn: that a red one and a blue one agree so far is to be expected about four times.
COLLIDING = {RED: 455012, BLUE: 634284}


def test_images_with_colliding_short_hashes_are_two_scenes(served: Any, serve: SimpleNamespace) -> None:
    red, blue = (square(colour, number) for colour, number in COLLIDING.items())
    digests = picture_digest(red), picture_digest(blue)
    assert digests[0][:10] == digests[1][:10] == "d4b4c41049" and digests[0] != digests[1]
    for scene in ("new", "kept"):
        for image, word, digest in ((red, "red", digests[0]), (blue, "blue", digests[1])):
            found = served.chat("", serve.data_uri(image), lira={"task": "caption"})
            message = found["choices"][0]["message"]
            assert message["lira"]["image"]["sha256"] == digest
            assert message["lira"]["scene"] == scene
            assert word in message["content"]
    # A conversation about one is not one about the other: the words before it are the same.
    question = serve.question("", serve.data_uri(red))
    talk = [question, {"role": "assistant", "content": message["content"]}, serve.question("Is it?")]
    with served.client() as client:
        response = client.post("/v1/chat/completions", json={"messages": talk})
    assert response.json()["choices"][0]["message"]["lira"]["history"]["as_text"] == 1


def test_keys_that_begin_alike_are_two_scenes(lira: Lira) -> None:
    """The same for the cache's own keys, in 24 bits: two such are among the first few thousand."""
    spec, begun = lira.manifest.preprocessing, dict[str, str]()
    for number in range(40_000):
        digest = f"{number:064x}"
        start = scene_key(digest, spec, None)[:6]
        if start in begun:
            break
        begun[start] = digest
    else:
        pytest.fail("no two keys begin alike")
    cache = SceneCache(lira, 1 << 30)
    first, _ = cache.scene(begun[start], square(RED), None)
    second, was_kept = cache.scene(digest, square(BLUE), None)
    assert first is not second and not was_kept and len(cache) == 2
    cache.clear()


def encoded(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture
def asked(served: Any) -> Callable[..., tuple[str, str]]:
    """Ask for a caption; return whether the scene is new, and the digest."""

    def ask(picture: str, **options: Any) -> tuple[str, str]:
        found = served.chat("", picture, lira={"task": "caption", **options}, max_tokens=2)
        told = found["choices"][0]["message"]["lira"]
        return told["scene"], told["image"]["sha256"]

    return ask


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {"compress_level": 0}), ("BMP", {}), ("WEBP", {"lossless": True})]
)
def test_the_same_pixels_in_any_file_are_one_scene(
    asked: Callable[..., tuple[str, str]], kind: str, options: dict[str, Any]
) -> None:
    image = square(RED, sum(kind.encode()))
    new, digest = asked(encoded(image, "PNG"))
    assert new == "new" and digest == picture_digest(image)
    assert asked(encoded(image, kind, **options)) == ("kept", digest)


def test_a_picture_that_its_exif_turns_is_the_upright_one(
    asked: Callable[..., tuple[str, str]], sample: str
) -> None:
    image = Image.open(sample).convert("RGB").resize((96, 64))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    new, digest = asked(encoded(turned, "PNG", exif=exif))
    assert new == "new"
    assert asked(encoded(image, "PNG")) == ("kept", digest)
    assert asked(encoded(turned, "PNG"))[1] != digest


def test_other_tiles_are_another_scene(asked: Callable[..., tuple[str, str]], sample: str) -> None:
    image = Image.open(sample).convert("RGB").resize((96, 48))
    picture = encoded(image, "PNG")
    assert asked(picture)[0] == "new"
    assert asked(picture, max_tiles=2)[0] == "new"
    assert asked(picture, max_tiles=2)[0] == "kept"
    assert asked(picture, max_tiles=1)[0] == "kept"  # the bundle's own number


def test_a_key_has_all_of_the_preprocessing(lira: Lira) -> None:
    spec = lira.manifest.preprocessing
    others = [
        replace(spec, tile=replace(spec.tile, use_thumbnail=False)),
        replace(spec, pixel=replace(spec.pixel, pad_color=(0, 0, 0))),
        replace(spec, region=replace(spec.region, brightness=0.5)),
    ]
    assert len({scene_key("a", one, None) for one in (spec, *others)}) == 4


# A server under a small limit


def series(server: Any) -> dict[str, float]:
    """The counters at /metrics."""
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for line in lines if line[0] != "#" for name, value in [line.rsplit(" ", 1)]}


def test_metrics_of_the_cache(serve: SimpleNamespace, nano_settings: Settings, scene_bytes: int) -> None:
    limit = 2 * scene_bytes + 1000
    with serve.serving(replace(nano_settings, scene_cache=limit)) as small:
        at_first = series(small)
        for number in (1, 2, 1, 1, 3, 2):  # 2 makes room for 3, 1 for 2
            picture = serve.data_uri(square(RED, number))
            small.chat("", picture, lira={"task": "caption"}, max_tokens=4)
        found = series(small)
    assert at_first["lira_scene_cache_evictions_total"] == 0  # the warm-up's scene counts nowhere
    assert found['lira_scene_cache_lookups_total{result="hit"}'] == 2
    assert found['lira_scene_cache_lookups_total{result="miss"}'] == 4
    assert found["lira_scene_cache_evictions_total"] == 2
    assert found["lira_scene_cache_scenes"] == 2
    assert scene_bytes < found["lira_scene_cache_bytes"] <= limit


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_is_flat_after_many_pictures(serve: SimpleNamespace, nano: Path) -> None:
    """30 scenes take 45 MB; four or five of them fit under the limit."""
    with serve.process(nano, "--scene-cache", "8MiB", "--threads", "1") as server:
        pictures = [serve.data_uri(square(RED, number)) for number in range(60)]
        for picture in pictures[:30]:
            server.chat("", picture, lira={"task": "caption"}, max_tokens=2)
        middle = resident(server.worker.pid)
        for picture in pictures[30:]:
            server.chat("", picture, lira={"task": "caption"}, max_tokens=2)
        grown = resident(server.worker.pid) - middle
        assert series(server)["lira_scene_cache_evictions_total"] > 50
    assert grown < 20e6, f"{grown / 1e6:.1f} MB"
