"""Turns of a conversation: what the KV cache keeps of them, and that an answer does not depend on it."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_engine.engines.runner import CountedRows, LlmOutput, check_room
from lira_engine.errors import LiraError
from lira_runtime import Answer, Lira, Question, Region, Scene, Turn, rle
from lira_runtime.answer import FinishedEvent
from lira_runtime.sampling import make_sampler

WIDTH, TILE_ROWS, PREFIX = 8, 3, 15  # of the stand-ins: C, N, and P of the picture below
FREE = (0.0,) * 4


class Rows(CountedRows):
    """A cache that, as the engines' do, keeps rows beyond its length until others are written there."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.rows = np.zeros((capacity, WIDTH), np.float32)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


class WholeTextLlm:
    """Outputs that depend on every bit of all rows before, and on nothing else. `fail_at`: a pass that writes
    some of its rows and raises."""

    def __init__(self, choices: Sequence[int], vocabulary: int, capacity: int) -> None:
        self.choices, self.vocabulary, self.capacity = choices, vocabulary, capacity
        self.passes: list[int] = []  # rows of each
        self.fail_at: int | None = None
        self.cache: Rows | None = None

    def new_cache(self) -> Rows:
        self.cache = Rows(self.capacity)
        return self.cache

    def forward(self, embeds: np.ndarray, cache: Rows, logit_positions: Sequence[int] = (-1,)) -> LlmOutput:
        assert embeds.dtype == np.float32
        check_room(cache.length, cache.capacity, len(embeds))
        start = cache.length
        cache.rows[start : start + len(embeds)] = embeds
        self.passes.append(len(embeds))
        if self.fail_at == len(self.passes):
            cache.fill(start + len(embeds) // 2)
            raise RuntimeError("the device is gone")
        cache.fill(start + len(embeds))
        ends = [start + 1 + position % len(embeds) for position in logit_positions]
        states = [zlib.crc32(cache.rows[:end].tobytes()) for end in ends]
        logits = np.zeros((len(ends), self.vocabulary), np.float32)
        for row, state in enumerate(states):
            logits[row, self.choices[state % len(self.choices)]] = 10
            logits[row, self.choices[state // 7 % len(self.choices)]] += 3
        hidden = np.outer([state % 5 for state in states], np.ones(WIDTH)).astype(np.float32)
        return LlmOutput(logits, hidden)


@pytest.fixture
def look(fakes: SimpleNamespace) -> Callable[..., tuple[Scene, Any]]:
    """Return a scene of a 40 x 20 image, and its language model."""

    def open_scene(capacity: int = 2000, costs: Sequence[float] = ()) -> tuple[Scene, Any]:
        words = ("▁a", "▁red", "▁ball", "▁is", "[SEG]", "[SEG]", "<image_id>", "<p>", "</p>", "<|im_end|>")
        llm = WholeTextLlm([fakes.ID[word] for word in words], len(fakes.VOCABULARY), capacity)
        engines = fakes.fake_engines()
        engines.llm, engines.draft_costs = llm, costs

        def semantic(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            value = -1 - zlib.crc32(feeds["pixel_values"].tobytes()) % 1000
            return {"features": np.full((1, TILE_ROWS, WIDTH), value, np.float32)}

        engines.semantic_encoder = fakes.FakeStage(semantic)
        table = fakes.embed(range(len(fakes.VOCABULARY)))
        separators = np.repeat(np.array([[-2], [-4]], np.float32), WIDTH, axis=1)
        lira = Lira(fakes.fake_manifest(), engines, fakes.FakeTokenizer(), table, separators)
        picture = np.arange(20 * 40 * 3, dtype=np.uint8).reshape(20, 40, 3)
        return lira.look(picture), llm

    return open_scene


def same(answer: Answer, other: Answer) -> bool:
    return (
        answer.token_ids == other.token_ids
        and answer.turn == other.turn
        and (answer.text, answer.finish_reason) == (other.text, other.finish_reason)
        and [mask.binary.tobytes() for mask in answer.masks]
        == [mask.binary.tobytes() for mask in other.masks]
        and [one.box_xyxy for one in answer.regions] == [one.box_xyxy for one in other.regions]
    )


def with_a_region(look: Any, **options: Any) -> tuple[Scene, Any, Answer]:
    """Return a scene, its language model, and an answer with a region in its middle."""
    for number in range(100):
        scene, llm = look(**options)
        answer = scene.ask("it " * number + "?", max_new_tokens=40)
        if answer.regions and answer.finish_reason == "stop":
            return scene, llm, answer
    raise AssertionError("no question has an answer with a region")


def test_a_turn_has_what_the_loop_read(look: Any, fakes: SimpleNamespace) -> None:
    _, llm, answer = with_a_region(look)
    turn = answer.turn
    assert isinstance(turn.answer, tuple) and turn.answer[-1] != fakes.EOS
    place = turn.answer.index(turn.regions[0])
    assert turn.answer[place - 1] == fakes.IMAGE_ID
    assert turn.answer[place + 1 : place + 3] == (fakes.ID["▁"], fakes.P)
    taken = answer.masks[answer.regions[0].mask_index]
    assert np.array_equal(turn.regions[0].mask, taken.binary)
    assert llm.cache.length == answer.timings.prompt_tokens + sum(
        TILE_ROWS if isinstance(piece, Region) else 1 for piece in turn.answer
    )


def test_a_second_turn_reads_its_question_alone(look: Any) -> None:
    scene, llm, first = with_a_region(look)
    rows, passes = llm.cache.length, len(llm.passes)
    second = scene.ask("it?", history=[first.turn])
    prompt = scene._model.prompt("it?", history=[first.turn])
    timings = second.timings
    assert llm.passes[passes] == len(prompt.after) == timings.prefill_tokens
    assert (timings.cached_tokens, timings.prompt_tokens) == (rows, rows + len(prompt.after))
    assert timings.history_kept == rows - PREFIX - len(prompt.before)
    assert not set(timings.regions) - {0.0} or len(timings.regions) == len(second.regions)


def test_no_mask_is_encoded_for_a_conversation_that_stays_here(
    look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a region are known by the region itself; its runs outlive the scene."""
    encoded: list[np.ndarray] = []
    encode = rle.encode
    monkeypatch.setattr(rle, "encode", lambda mask: encoded.append(mask) or encode(mask))
    scene, _, first = with_a_region(look)
    second = scene.ask("it?", history=[first.turn])
    assert second.timings.history_kept > TILE_ROWS and not encoded
    expected = [first.masks[region.mask_index].binary for region in first.regions]
    turn = first.turn
    scene.close()
    del scene, first
    for region, mask in zip(turn.regions, expected, strict=True):
        np.testing.assert_array_equal(region.mask, mask)
    assert len(encoded) == len(expected) > 0


def test_what_the_cache_has_no_longer_is_made_again(look: Any) -> None:
    scene, llm, first = with_a_region(look)
    kept = scene.ask("it?", history=[first.turn])
    scene.ask("a ball")  # cuts the cache to the image's rows
    encoded = len(scene._model.engines.semantic_encoder.calls)
    passes = len(llm.passes)
    again = scene.ask("it?", history=[first.turn])
    assert same(again, kept) and again.timings.history_kept == 1  # the line break
    history, new = llm.passes[passes : passes + 2]  # a pass each
    assert again.timings.prefill_tokens == history + new
    calls = len(scene._model.engines.semantic_encoder.calls) - encoded
    assert calls == len(first.turn.regions) + len(again.regions)


def test_a_changed_history_falls_back_to_the_common_prefix(look: Any) -> None:
    scene, _, first = with_a_region(look)
    second = scene.ask("is it red?", history=[first.turn])
    other = scene.ask("it?", history=[first.turn, replace(second.turn, answer="a ball")])
    prompt = scene._model.prompt("is it red?", history=[first.turn])
    shared = scene._rows.count((*prompt.history, *prompt.after))
    assert shared <= other.timings.history_kept <= shared + 2  # the text may begin as the answer did
    assert scene.ask("it?", history=[Turn("what?", "a")]).timings.history_kept <= 2


def test_single_questions_are_asked_as_ever(look: Any) -> None:
    """A conversation in between changes neither passes nor answers."""
    scene, llm, first = with_a_region(look)
    passes = llm.passes[1 : 1 + len(first.token_ids)]
    scene.ask("it?", history=[first.turn])
    start = len(llm.passes)
    again = scene.ask(first.turn.question, max_new_tokens=40)
    assert same(again, first) and llm.passes[start:] == passes
    assert again.timings.history_kept == 0


def test_an_answer_that_was_cut_off_is_closed_by_the_turns_end(look: Any, fakes: SimpleNamespace) -> None:
    scene, llm = look()
    cut = scene.ask("it", max_new_tokens=3)
    assert cut.finish_reason == "length" and cut.turn.answer == cut.token_ids
    start = len(llm.passes)
    scene.ask("it?", history=[cut.turn])
    prompt = scene._model.prompt("it?", history=[cut.turn])
    assert prompt.after[0] == fakes.EOS and prompt.history[-3:] == cut.token_ids
    assert llm.passes[start : start + 2] == [1, len(prompt.after)]  # nobody had read its last token


def test_a_tasks_own_stop_token_is_no_part_of_the_turn(look: Any, fakes: SimpleNamespace) -> None:
    scene, _ = look()
    prompt = scene._model.prompt(task="refseg", expression="ball")
    forced = {0: fakes.SEG, 1: fakes.IMAGE_ID}
    *_, last = scene.stream_prompt(prompt, make_sampler(), forced=forced)
    assert isinstance(last, FinishedEvent)
    assert last.answer.turn == Turn("segment ball.", (fakes.SEG,))


def test_beams_leave_the_cache_right(look: Any) -> None:
    scene, _, first = with_a_region(look)
    prompt = scene._model.prompt("it?", history=[first.turn], max_new_tokens=5)
    found = scene.search_prompt(prompt, 2)
    fresh, _ = look()
    assert same(found, fresh.search_prompt(prompt, 2))
    history = [first.turn, found.turn]
    assert same(scene.ask("a?", history=history), look()[0].ask("a?", history=history))


def test_any_course_of_questions_gives_the_answers_of_a_fresh_scene(look: Any) -> None:
    """Conversations in turns, left in the middle, with drafts, errors in a pass, other system texts and other
    places of the image: each answer is that of a scene that was asked nothing before."""
    seen = dict.fromkeys(("kept", "left", "failed", "region", "accepted", "searched", "full"), 0)
    for seed in range(30):
        make = random.Random(seed)
        capacity = make.choice((2000, 2000, 75))
        scene, llm = look(capacity, make.choice((FREE, ())))
        talks: list[list[Turn]] = [[]]
        for _ in range(12):
            history = list(make.choice(talks[-3:]))
            history = history[: make.randint(0, len(history))] if make.random() < 0.3 else history
            text = make.choice(("it?", "a ball?", "is it red?", "red", "the ball"))
            if not history and make.random() < 0.2:
                text = "what is <image>?"
            question = Question(
                text,
                ilvc=make.choice(("auto", "auto", "off", "plain")),
                max_new_tokens=make.choice((2, 12, 30)),
                temperature=make.choice((0.0, 1.5)),
                seed=make.randrange(5),
                history=history,
                system=make.choice((None, None, None, "be")),
            )
            try:
                stream = scene.stream(question)
            except LiraError as error:
                assert "earlier turns; expected at most 75: leave out turns" in str(error)
                seen["full"] += 1
                talks = [[]]
                continue
            course = make.random()
            if course < 0.15:  # left in the middle, and collected or not
                for _ in range(make.randint(1, 12)):
                    next(stream, None)
                if make.random() < 0.5:
                    stream.close()  # type: ignore[attr-defined]
                seen["left"] += 1
                continue
            if course < 0.3:
                llm.fail_at = len(llm.passes) + make.randint(1, 6)
                try:
                    list(stream)
                except RuntimeError:
                    seen["failed"] += 1
                llm.fail_at = None
                continue
            if course < 0.4:
                prompt = scene._model.prompt(question)
                answer = scene.search_prompt(prompt, 2)
                assert same(answer, look(capacity)[0].search_prompt(prompt, 2)), seed
                seen["searched"] += 1
            else:
                *_, last = stream
                assert isinstance(last, FinishedEvent)
                answer = last.answer
                assert same(answer, look(capacity)[0].ask(question)), seed
            timings = answer.timings
            assert timings.prompt_tokens == timings.cached_tokens + timings.prefill_tokens
            seen["kept"] += timings.history_kept > 0
            seen["region"] += bool(answer.regions)
            seen["accepted"] += timings.accepted > 0
            talks.append([*history, answer.turn])
    assert all(count > 5 for count in seen.values()), str(seen)


def test_a_history_that_does_not_fit_is_refused_at_once(look: Any) -> None:
    scene, llm = look(capacity=150)
    history = [Turn("a " * 120, "it")]
    with pytest.raises(
        LiraError, match=r"has \d+ tokens, 15 .* the image and \d+ earlier turns; expected at most 150: leave"
    ):
        scene.stream("it", history=history)
    assert llm.passes == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"history": 5}, "history is 5; expected turns"),
        ({"history": "it"}, "history is 'it'; expected turns"),
        ({"history": ["it"]}, r"history is \['it'\]; expected turns"),
        ({"history": [Turn("it <image>", ""), Turn("a", "b <image>")]}, ""),
        ({"history": [Turn("it", ""), Turn("a <image>", "")]}, "later question has <image>"),
        ({"history": [Turn("<image><image>", "")]}, "<image> 2 times"),
        ({"history": [Turn("it", (4, Region((8, 9), "")))]}, "region of 9 x 8 pixels, the image has 40 x 20"),
        ({"system": 5}, "the system text is 5; expected text"),
    ],
)
def test_histories_and_system_texts_are_checked_at_once(
    look: Any, options: dict[str, Any], message: str
) -> None:
    scene, llm = look()
    if not message:
        scene.stream("it", **options)
        return
    with pytest.raises(LiraError, match=message):
        scene.stream("it", **options)
    assert llm.passes == []


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Turn(5, ""), "a turn's question is 5; expected text"),  # type: ignore[arg-type]
        (lambda: Turn("", None), "a turn's answer is None; expected text"),  # type: ignore[arg-type]
        (lambda: Turn("", "\ud800"), "which is not UTF-8"),
    ],
)
def test_turns_refuse_values_of_the_wrong_kind(make: Callable[[], Turn], message: str) -> None:
    with pytest.raises(LiraError, match=message):
        make()


def test_a_scene_that_was_closed_answers_no_more(look: Any) -> None:
    scene, _, answer = with_a_region(look)
    begun, unstarted = scene.stream("it"), scene.stream("it")
    next(begun)
    assert scene.nbytes > 40 * 20 * 4 + 2000 * WIDTH * 4
    scene.close()
    assert scene.nbytes == 40 * 20 * 4
    assert all(mask.binary.shape == (20, 40) for mask in answer.masks)
    for go_on in (lambda: scene.ask("it"), lambda: next(begun), lambda: next(unstarted)):
        with pytest.raises(LiraError, match="the scene was closed; look at the image again"):
            go_on()
