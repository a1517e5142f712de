"""Clean text, phrases, spans and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_engine.errors import LiraError
from lira_runtime.answer import Answer, FinishedEvent, PhraseEvent
from lira_runtime.events import LoopEvent, MaskEvent, RegionEvent, TokenEvent
from lira_runtime.timings import Timings
from lira_runtime.transcript import Transcript
from lira_runtime.turns import Turn


@pytest.fixture
def write(fakes: SimpleNamespace) -> Any:
    """Play the loop for a script of tokens: a mask for each [SEG] read, a region at each <image_id>.

    Whatever the script: phrases are told once each, as the answer has them, and not before they are known.
    """

    def play(script: str, label: str = "", regions: bool = True) -> tuple[Answer, list[str]]:
        spec = fakes.fake_manifest().tokens
        transcript = Transcript(fakes.FakeTokenizer(), spec, label)
        pieces: list[str] = []
        masks: list[Any] = []
        told: list[PhraseEvent] = []
        read: int | None = None

        def add(event: LoopEvent) -> None:
            first, *more = transcript.add(event)
            assert type(first) is type(event)
            for one in more:
                assert isinstance(one, PhraseEvent) and one.mask_index < len(masks)
                assert one.phrase.text == ("".join(pieces)[one.phrase.start : one.phrase.end] or label)
            told.extend(one for one in more if isinstance(one, PhraseEvent))
            if isinstance(first, TokenEvent):
                pieces.append(first.text)

        for step, piece in enumerate(script.split(" ")):
            token_id = fakes.ID[piece]
            add(TokenEvent(token_id, step))
            if read == fakes.SEG:
                masks.append(f"mask {len(masks)}")
                add(MaskEvent(len(masks) - 1, masks[-1], step - 1))
            if token_id == fakes.IMAGE_ID and masks and regions:
                tile = np.zeros((1, 3, 8, 8), dtype=np.float32)
                add(RegionEvent(len(masks) - 1, (0, 0, 1, 1), tile, spec.region_suffix))
            read = token_id
        logits = [np.arange(len(fakes.VOCABULARY), dtype=np.float32) for _ in masks]
        *late, last = transcript.finish("stop", Timings(), Turn("", ()), logits)
        assert isinstance(last, FinishedEvent)
        told.extend(one for one in late if isinstance(one, PhraseEvent))
        assert all(masks[one.mask_index] == one.phrase.mask for one in told)
        by_place = sorted((one.phrase for one in told), key=repr)
        assert by_place == sorted((one for one in last.answer.phrases if one.mask is not None), key=repr)
        return last.answer, pieces

    return play


def phrases(answer: Answer) -> list[tuple[str, Any]]:
    for phrase in answer.phrases:
        assert answer.text[phrase.start : phrase.end] == phrase.text or phrase.start == phrase.end
    return [(phrase.text, phrase.mask) for phrase in answer.phrases]


def test_ilvc_phrase_has_the_mask_that_image_id_took(write: Any) -> None:
    """[SEG]<image_id>{region} <p> a red ball </p> [SEG]: the closing [SEG] repeats the mask."""
    answer, pieces = write(
        "[SEG] <image_id> ▁a ▁red ▁ball ▁ </p> ▁ [SEG] ▁is ▁left ▁of "
        "▁ [SEG] <image_id> ▁the ▁ball ▁ </p> ▁ [SEG] . <|im_end|>"
    )
    assert answer.text == "a red ball is left of the ball."
    assert "".join(pieces) == answer.text
    assert phrases(answer) == [("a red ball", "mask 0"), ("the ball", "mask 2")]
    assert [(phrase.start, phrase.end) for phrase in answer.phrases] == [(0, 10), (22, 30)]
    assert answer.masks == ("mask 0", "mask 1", "mask 2", "mask 3")
    assert answer.raw_text.startswith(
        "[SEG]<image_id> <p> a red ball </p> [SEG] is left of [SEG]<image_id> <p> the ball"
    )
    assert [region.mask_index for region in answer.regions] == [0, 2]


def test_without_ilvc_the_mask_is_the_one_after_the_phrase(write: Any) -> None:
    answer, _ = write(
        "▁ <p> ▁a ▁red ▁ball ▁ </p> ▁ [SEG] ▁is ▁left ▁of ▁ <p> ▁the ▁ball ▁ </p> ▁ [SEG] . <|im_end|>"
    )
    assert answer.text == "a red ball is left of the ball."
    assert phrases(answer) == [("a red ball", "mask 0"), ("the ball", "mask 1")]


def test_only_a_seg_right_after_the_phrase_is_its_mask(write: Any) -> None:
    answer, _ = write("▁ <p> ▁a ▁ball ▁ </p> ▁is ▁ [SEG] . <|im_end|>")
    assert phrases(answer) == [("a ball", None), ("", "mask 0")]
    assert (answer.phrases[1].start, answer.phrases[1].end) == (9, 9)


def test_referring_answer_names_its_mask_by_the_expression(write: Any) -> None:
    answer, pieces = write("[SEG] <image_id>", label="the red ball", regions=False)
    assert (answer.text, "".join(pieces)) == ("", "")
    assert phrases(answer) == [("the red ball", "mask 0")]
    answer, _ = write("▁it ▁is ▁ [SEG] . <|im_end|>")
    assert answer.text == "it is."
    assert phrases(answer) == [("", "mask 0")]
    assert answer.phrases[0].start == 5


def test_answer_cut_off_inside_a_phrase_keeps_it(write: Any) -> None:
    answer, _ = write("▁it ▁is ▁ [SEG] <image_id> ▁a ▁red")
    assert answer.text == "it is a red"
    assert phrases(answer) == [("a red", "mask 0")]
    answer, _ = write("▁it ▁is ▁ [SEG] <image_id>")
    assert phrases(answer) == [("", "mask 0")]


def test_a_region_gives_its_mask_to_one_phrase(write: Any) -> None:
    answer, _ = write("[SEG] <image_id> ▁a ▁ball </p> <p> ▁red </p> <|im_end|>")
    assert phrases(answer) == [("a ball", "mask 0"), ("red", None)]


def test_a_phrase_without_a_word_has_the_expression(write: Any) -> None:
    answer, _ = write("[SEG] <image_id> </p> <|im_end|>", label="the ball")
    assert phrases(answer) == [("the ball", "mask 0")]


def test_no_special_token_of_the_bundle_is_text(fakes: SimpleNamespace) -> None:
    spec = fakes.fake_manifest().tokens
    for tokens in (spec, replace(spec, bos=-1, eos=(fakes.EOS, spec.bos))):
        transcript = Transcript(fakes.FakeTokenizer(), tokens)
        for step, piece in enumerate(("<s>", "▁a", "<|im_end|>")):
            list(transcript.add(TokenEvent(fakes.ID[piece], step)))
        (last,) = transcript.finish("stop", Timings(), Turn("", ()))
        assert isinstance(last, FinishedEvent) and last.answer.text == "a"


def test_stray_tags_are_ignored(write: Any) -> None:
    answer, _ = write("</p> [SEG] <p> <p> ▁a </p> </p> <p> </p> [SEG] [SEG] <|im_end|>")
    assert answer.text == "a"
    assert phrases(answer) == [("", "mask 0"), ("a", None), ("", "mask 1"), ("", "mask 2")]


@pytest.mark.parametrize(
    "script, text",
    [
        ("▁it ▁ [SEG] ▁is", "it is"),
        ("▁it ▁ [SEG] ▁ , ▁is", "it, is"),
        ("▁it ▁ [SEG] ▁ ?", "it?"),
        ("▁it ▁ ,", "it ,"),  # the model's own spaces stay
        ("▁it \n [SEG] ▁is", "it\nis"),
        ("▁ \n ▁it ▁ ▁is \n ▁ <|im_end|>", "it  is"),
        ("<|im_end|>", ""),
    ],
)
def test_a_removed_tag_leaves_one_blank_at_most(write: Any, script: str, text: str) -> None:
    answer, pieces = write(script)
    assert answer.text == text
    assert "".join(pieces) == text


def test_tags_are_told_by_their_ids_not_by_their_characters(write: Any) -> None:
    answer, _ = write("▁a < p > ▁ball")
    assert answer.text == "a<p> ball"
    assert answer.phrases == ()


def test_a_character_is_held_back_until_its_last_byte(write: Any) -> None:
    answer, pieces = write("▁a <0xE2> <0x82> <0xAC> ▁ball")
    assert pieces == ["a", "", "", "€", " ball"]
    answer, pieces = write("▁a <0xE2> <0x82>")
    assert (answer.text, pieces) == ("a", ["a", "", ""])
    answer, pieces = write("▁a <0x82> ▁ball")  # never a character: U+FFFD once that is certain
    assert answer.text == "a\ufffd ball"


def test_attributes_rank_by_the_logits_at_seg(write: Any, fakes: SimpleNamespace) -> None:
    answer, _ = write("[SEG] <image_id>", regions=False)
    words = ["red", "blue", "ball"]  # logits are the ids: each word is likelier than the one before it
    ranked = answer.attributes(words)
    assert [word for word, _ in ranked] == ["ball", "blue", "red"]
    assert sum(probability for _, probability in ranked) == pytest.approx(1)
    e = np.e
    assert ranked[0][1] == pytest.approx(e**2 / (1 + e + e**2))
    assert answer.attributes(words, top=1) == ranked[:1]
    assert answer.attributes(["light blue", "red"])[0][0] == "light blue"


@pytest.mark.parametrize(
    "words, seg, message",
    [
        (["red"], 1, "has 1 masks"),
        (["red"], -1, "has 1 masks"),
        ([], 0, "no words"),
        (["light blue", "light red"], 0, "begin with the same token"),
        (["é"], 0, "no token for 'é'"),
        ([" "], 0, "no token for ' '"),
    ],
)
def test_attributes_refuses_missing_masks_and_words(
    write: Any, words: Sequence[str], seg: int, message: str
) -> None:
    answer, _ = write("[SEG] <image_id>", regions=False)
    with pytest.raises(LiraError, match=message):
        answer.attributes(words, seg)
