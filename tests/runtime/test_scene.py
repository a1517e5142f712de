"""Scenes on stand-in engines: prompts, cache, callbacks and timings together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_engine.bundle.manifest import TileSpec
from lira_engine.errors import LiraError
from lira_runtime import Lira, Question, Scene, preprocess
from lira_runtime.answer import FinishedEvent
from lira_runtime.events import MaskEvent, RegionEvent, TokenEvent
from lira_runtime.prompts import QuestionOptions
from lira_runtime.sampling import make_sampler

TILES = 3  # of the image below, with the thumbnail; the encoder reads one at a time


@pytest.fixture
def look(fakes: SimpleNamespace) -> Any:
    """Return a scene of a 40 x 20 image, and its engines."""

    def open_scene(
        script: str = "", capacity: int = 1000, at_once: int = 1, **tiles: int
    ) -> tuple[Scene, SimpleNamespace]:
        engines = fakes.fake_engines([fakes.ID[piece] for piece in script.split()], capacity)
        engines.tiles_at_once = at_once
        table = fakes.embed(range(len(fakes.VOCABULARY)))
        separators = np.repeat(np.array([[-2], [-4]], dtype=np.float32), fakes.WIDTH, axis=1)
        lira = Lira(fakes.fake_manifest(), engines, fakes.FakeTokenizer(), table, separators)
        return lira.look(np.full((20, 40, 3), 200, dtype=np.uint8), **tiles), engines

    return open_scene


def test_prefix_is_joined_in_upstreams_order(look: Any) -> None:
    """Tiles (thumbnail last), separator, pixel tokens, separator, valid queries only."""
    scene, engines = look()
    scene.ask("it")
    first = engines.llm.passes[0][:, 0]
    assert first[first < 0].tolist() == [-1] * 9 + [-2] + [-3] * 2 + [-4] + [-10, -12]
    assert engines.sefe.calls[0]["features"].shape == (1, 9, 8)


def test_starting_the_pixel_encoder_counts_as_its_time(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, engines = look()
    start = engines.pixel_encoder.start

    def slowly(feeds: Any) -> Any:
        time.sleep(0.02)
        return start(feeds)

    monkeypatch.setattr(engines.pixel_encoder, "start", slowly)
    assert scene._model.look(scene.image).look_timings.encode_pixel >= 0.02


def test_encoders_and_the_image_prefill_run_once(look: Any, fakes: SimpleNamespace) -> None:
    scene, engines = look("▁a ▁red <|im_end|> ▁it <|im_end|>")
    first = scene.ask("it")
    second = scene.ask("left?")
    assert (first.text, second.text) == ("a red", "it")
    assert [
        len(engines.semantic_encoder.calls),
        len(engines.pixel_encoder.calls),
        len(engines.sefe.calls),
    ] == [TILES, 1, 1]
    assert [fakes.is_prefix(chunk) for chunk in engines.llm.passes].count(True) == 1
    question = engines.llm.passes[-2][:, 0].astype(int).tolist()
    assert fakes.FakeTokenizer().decode(question) == "\nleft?<|im_end|><|im_start|>assistant\n"
    assert second.timings.prefill_tokens == len(question)
    assert first.timings.prefill_tokens == sum(map(len, engines.llm.passes[:2]))
    assert first.timings.look is scene.look_timings and first.timings.look.total > 0
    assert second.timings.look.total == 0
    assert first.timings.ttft > first.timings.look.total


@pytest.mark.parametrize(("at_once", "passes"), [(1, [1, 1, 1]), (2, [2, 1]), (13, [3])])
def test_an_image_takes_as_few_passes_as_its_engines_allow(
    look: Any, at_once: int, passes: list[int]
) -> None:
    """A region is a pass of one tile."""
    scene, engines = look("[SEG] <image_id> ▁red </p> . <|im_end|>", at_once=at_once)
    calls = engines.semantic_encoder.calls
    assert [len(feeds["pixel_values"]) for feeds in calls] == passes
    tiles = np.concatenate([feeds["pixel_values"] for feeds in calls])
    one_by_one = [feeds["pixel_values"] for feeds in look()[1].semantic_encoder.calls]
    np.testing.assert_array_equal(tiles, np.concatenate(one_by_one))
    scene.ask(task="gcg")
    assert [len(feeds["pixel_values"]) for feeds in calls] == [*passes, 1]


def test_an_answer_with_ilvc_has_masks_regions_and_phrases(look: Any, fakes: SimpleNamespace) -> None:
    scene, engines = look("[SEG] <image_id> ▁red ▁ball </p> [SEG] . <|im_end|>")
    events = list(scene.stream(task="gcg"))
    kinds = [type(event).__name__.removesuffix("Event") for event in events]
    assert kinds == [
        *("Token", "Token", "Mask", "Region", "Token", "Token", "Token", "Phrase", "Token", "Token", "Mask"),
        *("Token", "Finished"),
    ]
    answer = events[-1].answer
    assert answer.text == "red ball." and answer.finish_reason == "stop"
    assert "".join(event.text for event in events if isinstance(event, TokenEvent)) == answer.text
    assert [event.token_step for event in events if isinstance(event, MaskEvent)] == [0, 5]
    # the chunk: <image_id>, the region's features, " <p>"
    chunk = next(chunk for chunk in engines.llm.passes if chunk[0, 0] == fakes.IMAGE_ID)
    assert chunk[:, 0].tolist() == [fakes.IMAGE_ID, -1, -1, -1, fakes.ID["▁"], fakes.P]
    assert [phrase.text for phrase in answer.phrases] == ["red ball"]
    assert answer.phrases[0].mask is answer.masks[0]
    region = next(event for event in events if isinstance(event, RegionEvent))
    assert region.box_xyxy == answer.masks[0].box_xyxy and region.tile.shape == (1, 3, 8, 8)
    timings = answer.timings
    assert (timings.new_tokens, len(timings.region_prefill), len(timings.decode)) == (8, 1, 6)
    assert (len(timings.regions), len(timings.masks)) == (1, 1)  # nobody has accessed the closing mask
    assert timings.total >= timings.look.total + timings.prefill + sum(timings.decode)


def test_masks_are_decoded_once_at_first_access(look: Any) -> None:
    scene, engines = look("▁it [SEG] . <|im_end|>")
    answer = scene.ask("it")
    assert engines.pixel_decoder.calls == []
    before = answer.timings.total
    mask = answer.masks[0]
    assert mask.binary.shape == (20, 40) and mask.binary.dtype == bool
    assert mask.box_xyxy == (0, 0, 20, 20)  # pass 2 read [SEG]: 2 of 4 columns
    assert mask.score == pytest.approx((1 / (1 + np.exp(-mask.logits[mask.binary]))).mean())
    assert len(engines.pixel_decoder.calls) == 1
    assert answer.timings.total > before and len(answer.timings.masks) == 1
    assert mask.logits.shape == (20, 40) and mask.logits.dtype == np.float32


def test_a_mask_keeps_what_its_own_passes_gave(look: Any, fakes: SimpleNamespace) -> None:
    """Where engines write the next pass over the last one."""
    scene, engines = look("[SEG] ▁it [SEG] . <|im_end|>")
    logits = np.empty((1, 4, 4), np.float32)

    def decode(feeds: Any) -> dict[str, np.ndarray]:
        logits[:] = feeds["hidden_states"][0, 0]
        return {"mask_logits": logits}

    engines.pixel_decoder._function = decode
    answer = scene.ask("it")
    assert [mask.decoder_logits[0, 0] for mask in answer.masks] == [1, 3]  # the passes that read [SEG]
    assert [mask.decoder_logits[0, 0] for mask in answer.masks] == [1, 3]
    words = [row[fakes.ID["▁red"]] for row in answer._seg_logits]
    assert words == [pytest.approx(1.1), pytest.approx(1.3)]


def test_empty_mask_gives_the_whole_image_as_region(look: Any) -> None:
    scene, engines = look("[SEG] <image_id> </p> <|im_end|>")
    no_hidden = lambda feeds: {"mask_logits": np.full((1, 4, 4), -1, dtype=np.float32)}  # noqa: E731
    engines.pixel_decoder._function = no_hidden
    events = list(scene.stream(task="gcg"))
    region = next(event for event in events if isinstance(event, RegionEvent))
    assert region.box_xyxy == (0, 0, 40, 20)
    answer = events[-1].answer
    assert (answer.masks[0].box_xyxy, answer.masks[0].score) == (None, 0.0)


def test_image_id_without_a_mask_appends_nothing(look: Any) -> None:
    scene, engines = look("<image_id> ▁it <|im_end|>")
    answer = scene.ask("it")
    assert (answer.text, answer.raw_text) == ("it", "<image_id> it<|im_end|>")
    assert (answer.regions, len(engines.semantic_encoder.calls)) == ((), TILES)


def test_an_answer_without_seg_runs_no_mask_and_no_region(look: Any) -> None:
    scene, engines = look("▁it ▁is ▁red . <|im_end|>")
    answer = scene.ask(task="vqa", expression="Is it red?")
    assert (answer.text, answer.masks, answer.phrases) == ("it is red.", (), ())
    assert engines.pixel_decoder.calls == [] and len(engines.semantic_encoder.calls) == TILES


def test_referring_task_stops_at_image_id_with_its_mask_and_without_a_region(look: Any) -> None:
    scene, engines = look("[SEG] <image_id>")
    answer = scene.ask(task="refseg", expression=" Red Ball ")
    assert answer.finish_reason == "stop"
    assert (answer.text, [phrase.text for phrase in answer.phrases]) == ("", ["Red Ball"])
    assert len(answer.masks) == 1 and len(engines.semantic_encoder.calls) == TILES


def test_ilvc_off_takes_the_other_prompt_and_bans_image_id(look: Any, fakes: SimpleNamespace) -> None:
    scene, engines = look("[SEG] <image_id> . <|im_end|>")
    answer = scene.ask(task="refseg", expression="ball", ilvc="off")
    assert fakes.IMAGE_ID not in answer.token_ids and fakes.SEG in answer.token_ids
    assert fakes.FakeTokenizer().decode(engines.llm.passes[1][:, 0].astype(int)).startswith("\nthe ball.")
    assert len(engines.semantic_encoder.calls) == TILES


def test_free_form_question_does_not_stop_at_image_id(look: Any) -> None:
    scene, _ = look("[SEG] <image_id> ▁ball </p> [SEG] <|im_end|>")
    assert scene.ask("Please segment ball").text == "ball"


def test_context_that_fills_up_keeps_the_answer(look: Any) -> None:
    scene, engines = look()
    scene.ask("it")
    used = sum(map(len, engines.llm.passes))
    scene, _ = look("▁it ▁is ▁red ▁ball ▁left", capacity=used + 2)
    answer = scene.ask("it")
    assert (answer.text, answer.finish_reason) == ("it is red", "length")


def test_a_prompt_as_long_as_the_context_is_answered(look: Any) -> None:
    scene, engines = look()
    scene.ask("it")
    length = sum(map(len, engines.llm.passes[:2]))
    assert look("▁it", capacity=length)[0].ask("it").token_ids
    with pytest.raises(LiraError, match=f"the prompt has {length} tokens"):
        look("▁it", capacity=length - 1)[0].ask("it")


@pytest.mark.parametrize("tiles", [{"max_tiles": 1}, {"min_tiles": 2}])
def test_fewer_tiles_are_no_way_out_of_one(look: Any, tiles: dict[str, int]) -> None:
    scene, _ = look(capacity=20, **tiles)
    with pytest.raises(LiraError, match="expected at most 20: ask a shorter question") as caught:
        scene.stream("it")
    fewer = f", or allow fewer tiles than {scene.tiles} (--max-tiles)"
    assert (fewer in str(caught.value)) is (scene.tiles > 1)


def test_a_prompt_longer_than_the_context_is_refused(look: Any) -> None:
    scene, engines = look(capacity=60)
    with pytest.raises(
        LiraError, match=r"has \d+ tokens, 15 of them the image; expected at most 60: .*--max-tiles"
    ):
        scene.stream("a " * 100)
    assert engines.llm.passes == []


@pytest.mark.parametrize("most", [4, np.int64(4)])
def test_max_new_tokens_ends_the_answer(look: Any, most: Any) -> None:
    scene, _ = look("▁it ▁is ▁red [SEG]")
    answer = scene.ask("it", max_new_tokens=most)
    assert (answer.text, answer.finish_reason, answer.masks) == ("it is red", "length", ())


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "question is empty"),
        ({"question": " \n"}, "question is empty"),
        ({"task": "refseg"}, "needs an expression"),
        ({"task": "refseg", "expression": "  "}, "needs an expression"),
        ({"task": "refseg", "expression": "a", "question": "b"}, "takes one text"),
        ({"task": "gcg", "expression": "a"}, "has its own question"),
        ({"task": "poem"}, "expected one of gcg, refseg, vqa"),
        ({"expression": "a"}, "needs a task"),
        ({"question": "it", "ilvc": "maybe"}, "expected one of auto, on, off, plain"),
        ({"question": "<image> and <image>"}, "<image> 2 times; expected it once"),
        ({"task": "refseg", "expression": "<image><image>"}, "<image> 2 times; expected it once"),
        ({"question": "it", "max_new_tokens": 0}, "expected 1 or more"),
        ({"question": "it", "temperature": -1}, "temperature"),
        ({"question": 5}, "the question is 5; expected text"),
        ({"question": b"it"}, "the question is b'it'; expected text"),
        ({"question": "caf\udce9"}, "the question is .*, which is not UTF-8"),
        ({"task": ["gcg"]}, "the task is of type list; expected text"),
        ({"task": "refseg", "expression": 5}, "the expression is 5; expected text"),
        ({"task": "refseg", "expression": "\ud800"}, "the expression is .*, which is not UTF-8"),
        ({"question": "it", "ilvc": 1}, "expected one of auto, on, off"),
        ({"question": "it", "max_new_tokens": 2.5}, "max_new_tokens is 2.5; expected 1 or more"),
        ({"question": "it", "max_new_tokens": True}, "max_new_tokens is True; expected 1 or more"),
        ({"question": "it", "seed": -1}, "seed is -1; expected 0 or more"),
    ],
)
def test_bad_questions_are_refused_at_once(look: Any, options: dict[str, Any], message: str) -> None:
    scene, engines = look()
    with pytest.raises(LiraError, match=message):
        scene.stream(**options)
    assert engines.llm.passes == []


def test_every_field_of_a_question_is_a_keyword() -> None:
    names = [field.name for field in fields(Question)]
    assert names == ["question", *QuestionOptions.__annotations__]


def test_a_question_object_asks_the_same_as_its_keywords(look: Any) -> None:
    options = {"task": "refseg", "expression": "Red Ball", "ilvc": "off", "max_new_tokens": 2}
    question = Question(**options)
    scene, engines = look("▁it ▁is ▁red " * 4)
    answers = [
        scene.ask(question),
        scene.ask(**options),
        scene.ask(replace(question, ilvc="auto"), ilvc="off"),
        list(scene.stream(question))[-1].answer,
    ]
    asked = [chunk for chunk in engines.llm.passes[1:] if len(chunk) > 1]
    assert len(asked) == 4 and all(np.array_equal(chunk, asked[0]) for chunk in asked)
    assert [len(answer.token_ids) for answer in answers] == [2] * 4
    assert scene._model.prompt(question) == scene._model.prompt(**options)


def test_a_question_may_be_the_text_of_a_task(look: Any) -> None:
    scene, _ = look("▁it")
    assert scene.ask("Is it?", task="vqa").text == "it"


def test_continuing_an_older_stream_is_refused(look: Any) -> None:
    scene, _ = look("▁it ▁is ▁red")
    old: Iterator[Any] = scene.stream("it")
    next(old)
    assert isinstance(list(scene.stream("red"))[-1], FinishedEvent)
    with pytest.raises(LiraError, match="one stream at a time"):
        next(old)
    unstarted = scene.stream("it")
    scene.ask("red")
    assert isinstance(list(unstarted)[-1], FinishedEvent)  # a stream that has not begun is not disturbed


def test_abandoned_stream_leaves_the_scene_usable(look: Any, fakes: SimpleNamespace) -> None:
    scene, engines = look("▁it ▁is ▁red ▁ball <|im_end|>")
    for event in scene.stream("it"):
        if event.step == 1:
            break
    assert scene.ask("it").text == "red ball"
    assert [fakes.is_prefix(chunk) for chunk in engines.llm.passes].count(True) == 1


def test_time_of_the_streams_consumer_is_not_counted(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    scene, _ = look("▁it ▁is <|im_end|>")
    finished = None
    for event in scene.stream("it"):
        now[0] += 100
        finished = event
    assert isinstance(finished, FinishedEvent)
    assert finished.answer.timings.total == 0


def test_forced_tokens_replay_an_answer(look: Any, fakes: SimpleNamespace) -> None:
    scene, _ = look("▁it ▁is ▁red")
    prompt = scene._model.prompt("it")
    forced = {1: fakes.SEG, 2: fakes.IMAGE_ID}
    answer = list(scene.stream_prompt(prompt, make_sampler(), forced=forced))[-1].answer
    assert answer.token_ids == (fakes.ID["▁it"], fakes.SEG, fakes.IMAGE_ID, fakes.EOS)
    assert len(answer.regions) == 1


def test_ilvc_plain_takes_image_id_for_a_token(look: Any, fakes: SimpleNamespace) -> None:
    """It is neither banned nor followed by a region: the next pass reads it alone."""
    scene, engines = look("[SEG] <image_id> ▁ball </p> . <|im_end|>")
    answer = scene.ask(task="gcg", ilvc="plain")
    assert (answer.regions, len(answer.masks), len(engines.semantic_encoder.calls)) == ((), 1, TILES)
    assert fakes.IMAGE_ID in answer.token_ids
    assert [fakes.IMAGE_ID] in [chunk[:, 0].tolist() for chunk in engines.llm.passes]


@pytest.mark.parametrize("ilvc", ["auto", "off"])
def test_tokens_say_how_likely_they_were_if_asked(look: Any, fakes: SimpleNamespace, ilvc: Any) -> None:
    """Among all tokens; with ilvc="off" among all but <image_id>."""
    script = "▁it <image_id> ▁is <|im_end|>"
    scene, _ = look(script)
    tokens = [e for e in scene.stream("it", ilvc=ilvc, logprobs=True) if isinstance(e, TokenEvent)]
    for scripted, event in zip(script.split(), tokens, strict=True):
        logits = np.zeros(len(fakes.VOCABULARY))  # as FakeLlm makes them
        logits[fakes.ID[scripted]] = 10
        logits[fakes.ID["▁red"]] += 1 + event.step / 10
        if ilvc == "off":
            logits[fakes.IMAGE_ID] = -np.inf
        shares = np.exp(logits) / np.exp(logits).sum()
        assert event.token_id == np.argmax(shares)
        assert event.logprob == pytest.approx(np.log(shares[event.token_id]), rel=1e-5)
    assert [e.logprob for e in look(script)[0].stream("it") if isinstance(e, TokenEvent)] == [None] * 4


def test_a_forced_token_was_not_chosen_and_has_no_probability(look: Any) -> None:
    scene, _ = look("▁it ▁is")
    asked = Question("it", logprobs=True)
    choose = asked.sampler(scene._model.manifest.tokens)
    events = scene.stream_prompt(scene._model.prompt(asked), choose, forced={1: 9})
    found = [event.logprob is None for event in events if isinstance(event, TokenEvent)]
    assert found == [False, True, False]


def test_masks_may_be_read_while_the_answer_goes_on(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is the mask's, once, and part of the total; not of the answer's, nor of the consumer's."""
    script = "[SEG] ▁it [SEG] <image_id> ▁is </p> [SEG] . <|im_end|>"
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    scene, engines = look(script)
    run = engines.pixel_decoder.run

    def slowly(feeds: Any) -> Any:
        now[0] += 2
        return run(feeds)

    monkeypatch.setattr(engines.pixel_decoder, "run", slowly)
    plain = look(script)[0].ask(task="gcg")
    for event in scene.stream(task="gcg"):
        if isinstance(event, MaskEvent):
            assert (event.mask.score > 0) == (event.mask.box_xyxy is not None) == event.mask.binary.any()
        now[0] += 100
        last = event
    assert isinstance(last, FinishedEvent)
    answer = last.answer
    assert (answer.timings.masks, answer.timings.total) == ([2.0, 2.0, 2.0], 6.0)
    assert answer.turn == plain.turn and answer.token_ids == plain.token_ids


def read_by_first_question(scene: Scene, engines: SimpleNamespace, fakes: Any, question: str) -> list[str]:
    """Return the text that the LLM read before and after the image."""
    scene.ask(question)
    ids = np.concatenate(engines.llm.passes[:2])[:, 0].astype(int)
    image = np.flatnonzero(ids < 0)
    decode = fakes.FakeTokenizer().decode
    return [decode(ids[: image[0]]), decode(ids[image[-1] + 1 :])]


def test_image_place_in_a_question_is_where_the_image_goes(look: Any, fakes: SimpleNamespace) -> None:
    """As in upstream, the place and line break of a question without <image> are left out."""
    read = read_by_first_question(*look(), fakes, "what is <image> and {question}?")
    assert read == [
        "<|im_start|>system\na<|im_end|><|im_start|>user\nwhat is ",
        "and {question}?<|im_end|><|im_start|>assistant\n",  # decoders drop the first blank
    ]


def test_a_question_that_places_the_image_does_not_disturb_the_others(
    look: Any, fakes: SimpleNamespace
) -> None:
    """The rows before the image differ, so the cache is filled again for it, and after it."""
    scene, engines = look()
    for question in ("it", "what is <image>", "it", "it"):
        scene.ask(question)
    prompts = [chunk[:, 0].tolist() for chunk in engines.llm.passes if fakes.is_prefix(chunk)]
    assert len(prompts) == 3 and prompts[0] == prompts[2] != prompts[1]


def test_blanks_around_a_question_are_kept(look: Any, fakes: SimpleNamespace) -> None:
    assert read_by_first_question(*look(), fakes, "  is it red? \n")[1] == (
        "\n  is it red? \n<|im_end|><|im_start|>assistant\n"
    )
    scene, engines = look()
    scene.ask(task="refseg", expression=" Red Ball ")
    read = fakes.FakeTokenizer().decode(engines.llm.passes[1][:, 0].astype(int))
    assert read.startswith("\nsegment  red ball .<|im_end|>")


def test_tags_in_a_question_become_their_tokens(look: Any, fakes: SimpleNamespace) -> None:
    scene, engines = look()
    scene.ask("is [SEG] <p>it</p>?")
    read = engines.llm.passes[1][:, 0].astype(int).tolist()
    assert {fakes.SEG, fakes.P, fakes.P_END} <= set(read)


@pytest.mark.parametrize("question", [{"question": "it"}, {"task": "gcg"}], ids=str)
def test_every_end_token_of_the_bundle_ends_an_answer(
    look: Any, fakes: SimpleNamespace, question: dict[str, str]
) -> None:
    """That of a task, too, whose own list lacks it."""
    scene, _ = look("▁it <s> ▁is <|im_end|>")
    tokens = replace(scene._model.manifest.tokens, eos=(fakes.EOS, fakes.ID["<s>"]))
    scene._model.manifest = replace(scene._model.manifest, tokens=tokens)
    answer = scene.ask(**question)
    assert (answer.text, answer.finish_reason) == ("it", "stop")


def test_a_tasks_text_is_lowered_only_where_the_bundle_says_so(look: Any) -> None:
    scene, _ = look()
    texts = {task: scene._model.prompt(task=task, expression="The Ball") for task in ("refseg", "vqa")}
    assert {task: prompt.question for task, prompt in texts.items()} == {
        "refseg": "segment the ball.",
        "vqa": "The Ball",
    }
    assert {task: prompt.label for task, prompt in texts.items()} == {"refseg": "The Ball", "vqa": ""}


@pytest.mark.parametrize(
    "tiles, grid", [({}, 2), ({"max_tiles": 1}, 1), ({"max_tiles": 8}, 8), ({"min_tiles": 2}, 2)]
)
def test_the_image_is_cut_into_the_tiles_that_are_asked_for(
    look: Any, tiles: dict[str, int], grid: int
) -> None:
    """A 40 x 20 image in tiles of 8 x 8; several tiles come with a thumbnail."""
    scene, engines = look(**tiles)
    seen = grid + (grid > 1)
    assert (scene.tiles, len(engines.semantic_encoder.calls)) == (seen, seen)
    scene.ask("it")
    assert (engines.llm.passes[0][:, 0] == -1).sum() == 3 * seen


def test_max_tiles_lowers_the_bundles_minimum() -> None:
    spec = TileSpec(8, (0.5,) * 3, (0.5,) * 3, 4, 6, True)
    assert preprocess.with_tiles(spec, max_tiles=2).min_num == 2
    assert preprocess.with_tiles(spec) == spec


@pytest.mark.parametrize(
    "tiles, message",
    [
        ({"max_tiles": 0}, "max_tiles is 0; expected a whole number from 1 to 12"),
        ({"max_tiles": 13}, "max_tiles is 13"),
        ({"max_tiles": True}, "max_tiles is True"),
        ({"max_tiles": 2.0}, "max_tiles is 2.0"),
        ({"min_tiles": 0}, "min_tiles is 0"),
        ({"min_tiles": 4}, "min_tiles is 4; expected at most max_tiles, which is 2"),
    ],
)
def test_impossible_numbers_of_tiles_are_refused(look: Any, tiles: dict[str, Any], message: str) -> None:
    with pytest.raises(LiraError, match=message):
        look(**tiles)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"words": 5}, "words is 5; expected several words"),
        ({"words": "red"}, "words is 'red'; expected several words"),
        ({"words": ["red", 5]}, "one of words is 5; expected text"),
        ({"words": ["red"], "seg": 0.5}, "seg is 0.5; expected the number of a mask"),
        ({"words": ["red"], "top": "5"}, "top is '5'; expected 0 or more"),
    ],
)
def test_attributes_refuses_values_of_the_wrong_kind(
    look: Any, options: dict[str, Any], message: str
) -> None:
    scene, _ = look("[SEG] <image_id>")
    answer = scene.ask(task="refseg", expression="ball")
    with pytest.raises(LiraError, match=message):
        answer.attributes(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bundle": None}, "the bundle is of type NoneType; expected a path"),
        ({"bundle": "b", "target": None}, "the target is None; expected text"),
        ({"bundle": "b", "precision": 4}, "the precision is 4; expected text"),
        ({"bundle": "b", "threads": 2.5}, "threads is 2.5; expected 1 or more"),
        ({"bundle": "b", "threads": 0}, "threads is 0; expected 1 or more"),
        ({"bundle": "caf\udce9"}, "is not UTF-8, .*: rename the folder"),
    ],
)
def test_open_refuses_values_of_the_wrong_kind(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LiraError, match=message):
        Lira.open(**options)
