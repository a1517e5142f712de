"""Scenes of the miniature: answers that are left in the middle, conversations, and the memory of a scene."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lira_runtime import Answer, FinishedEvent, Lira, MaskEvent, PhraseEvent, TokenEvent

SAMPLE = Path(__file__).parents[2] / "assets" / "sample.png"
FISH = "Is there a fish in the image? Please answer yes or no."

pytestmark = pytest.mark.portable


@pytest.fixture(scope="module")
def lira(nano_bundle: Path) -> Iterator[Lira]:
    with Lira.open(nano_bundle, target="portable", threads=1) as opened:
        yield opened


def bits(answer: Answer) -> tuple[object, ...]:
    """All that an answer has, to the last bit."""
    logits = [mask.decoder_logits.tobytes() for mask in answer.masks]
    return answer.text, answer.turn, logits, [one.tobytes() for one in answer._seg_logits]


def test_phrases_are_told_as_they_are_made(lira: Lira) -> None:
    events = list(lira.look(SAMPLE).stream(task="gcg"))
    text, masks, told = "", 0, []
    for event in events:
        if isinstance(event, TokenEvent):
            text += event.text
        elif isinstance(event, MaskEvent):
            masks += 1
        elif isinstance(event, PhraseEvent):
            assert event.mask_index < masks
            assert text[event.phrase.start : event.phrase.end] == event.phrase.text
            assert len(text) - event.phrase.end <= 1  # right behind it
            told.append(event.phrase)
    last = events[-1]
    assert isinstance(last, FinishedEvent) and len(told) > 2
    assert tuple(told) == last.answer.phrases


def test_an_answer_may_be_left_at_any_event(lira: Lira) -> None:
    """The next question is answered, and timed, as if it were the first; to the last bit."""
    scene = lira.look(SAMPLE)
    events = len(list(scene.stream(task="gcg")))
    expected = lira.look(SAMPLE).ask(FISH)
    for place in range(1, events):
        stream = scene.stream(task="gcg", max_new_tokens=100)
        for _ in range(place):
            event = next(stream)
        if isinstance(event, MaskEvent):
            assert event.mask.score > 0
        if place % 2:
            stream.close()  # type: ignore[attr-defined]
        answer = scene.ask(FISH)
        assert bits(answer) == bits(expected), place
        assert (
            answer.timings.cached_tokens == answer.timings.prompt_tokens - answer.timings.prefill_tokens > 0
        )


def test_a_conversation_goes_on_in_the_cache(lira: Lira) -> None:
    """With rows from decode steps, or made again in one pass: the same up to rounding."""
    scene = lira.look(SAMPLE)
    first = scene.ask(task="gcg")
    second = scene.ask(FISH, history=[first.turn], logprobs=True)
    assert len(first.regions) > 2 and second.timings.history_kept > 100
    assert second.timings.regions == [] and second.timings.prefill_tokens < 30
    history = [first.turn, second.turn]
    kept, fresh = (one.ask(FISH, history=history) for one in (scene, lira.look(SAMPLE)))
    assert kept.timings.cached_tokens > 0 == fresh.timings.cached_tokens
    assert len(fresh.timings.regions) == len(first.regions)
    assert (kept.text, kept.turn) == (fresh.text, fresh.turn)
    cut = scene.ask(FISH, history=[first.turn])
    assert cut.turn == second.turn and cut.timings.history_kept == second.timings.history_kept


MEASURE = """
import ctypes, gc, json, sys
import numpy as np
from PIL import Image
from lira_runtime import Lira

def memory():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as file:
        (anonymous,) = (line.split()[1] for line in file if line.startswith("RssAnon:"))
    return int(anonymous) * 1024

sample = np.asarray(Image.open(sys.argv[2]).convert("RGB"))
with Lira.open(sys.argv[1], target="portable", threads=1) as lira:
    def scene(number, talk):
        picture = sample.copy()
        picture[0, 0] = number
        scene = lira.look(picture)
        if talk:
            answer = scene.ask(task="refseg", expression="the fish")
            answer.masks[0].binary
            scene.ask("Is it a fish?", history=[answer.turn])
        return scene

    found = []
    for talk in (False, True):
        warm = [scene(200 + number, True) for number in range(2)]
        before = memory()
        scenes = [scene(number, talk) for number in range(20)]
        found += [memory() - before, sum(one.nbytes for one in scenes)]
        for one in scenes:
            one.close()
        found.append(memory() - before)
        pictures = sum(one.nbytes for one in scenes)
        del scenes, one
        found += [pictures, memory() - before]
    print(json.dumps(found))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux does")
def test_a_scene_says_how_much_memory_it_takes(nano_bundle: Path) -> None:
    """Within a tenth of what 20 scenes of a process of their own take, and nearly all comes back."""
    command = [sys.executable, "-c", MEASURE, str(nano_bundle), str(SAMPLE)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = np.reshape(json.loads(ran.stdout), (2, 5))
    for grown, told, closed, pictures, gone in found:
        assert 0.9 < told / grown < 1.1, found
        assert closed < 1.1 * pictures + 0.1 * told and gone < 0.1 * told, found
