from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from lira_export.config import LIRA_TOKENS
from lira_export.tokenizer import add_lira_tokens
from lira_nano import texts
from lira_nano.scenes import render_scene
from lira_nano.sequences import Packer
from lira_nano.texts import SYSTEM_PROMPT, USER_PROMPT, answer_text
from lira_nano.tokenizer import build_tokenizer, vocabulary


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    built = build_tokenizer()
    add_lira_tokens(built)
    return built


def prompt_texts(question: str) -> tuple[str, str]:
    """Return the prompt before and after the visual prefix."""
    before, after = (SYSTEM_PROMPT + USER_PROMPT).split("<image>")
    return before, after.format(question=question)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def samples(count: int) -> list[texts.Sample]:
    found = []
    for index in range(count):
        scene = render_scene(31, index, 64)
        found += [texts.gcg_sample(scene, True), texts.gcg_sample(scene, False), texts.caption_sample(scene)]
        found += [
            texts.referring_sample(item, ilvc) for item in texts.referring(scene) for ilvc in (False, True)
        ]
        found += [sample for pair in texts.standard_pairs(scene) for sample in texts.vqa_samples(pair)]
    return found


def test_the_vocabulary_has_a_fixed_layout() -> None:
    tokenizer = build_tokenizer()
    size = tokenizer.get_vocab_size()
    assert size == len(vocabulary()) <= 634
    assert [tokenizer.id_to_token(i) for i in range(5)] == [
        "<unk>",
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    assert add_lira_tokens(tokenizer) == {token: size + i for i, token in enumerate(LIRA_TOKENS)}
    assert LIRA_TOKENS == ("[SEG]", "<p>", "</p>", "<region>", "<mark>", "<image_id>")
    assert add_lira_tokens(tokenizer)["[SEG]"] == size  # a second call changes nothing
    assert tokenizer.get_vocab_size() == size + 6


def test_generated_texts_round_trip_as_whole_words(tokenizer: Tokenizer) -> None:
    for sample in samples(40):
        for text in (*prompt_texts(sample.question), sample.answer):
            encoded = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
            assert not any(len(token) == 1 and token.isalpha() and token != "a" for token in encoded.tokens)


def test_parts_of_an_answer_tokenize_as_the_whole(tokenizer: Tokenizer) -> None:
    for sample in samples(20):
        apart = [
            token
            for part in sample.answer_parts
            for token in encode(tokenizer, part if isinstance(part, str) else answer_text([part]))
        ]
        assert apart == encode(tokenizer, sample.answer)


def test_an_answer_has_these_tokens(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode("[SEG]<image_id> <p> a red star </p> [SEG].", add_special_tokens=False)
    spaced = "[SEG] <image_id> ▁ <p> ▁a ▁red ▁star ▁ </p> ▁ [SEG] ."
    assert encoded.tokens == spaced.split(" ")
    assert len(encode(tokenizer, "Yes")) == len(encode(tokenizer, "No")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces ",
        "\n",
        "Wo ist der Hund?",
        "naïve 画像 \U0001f436\u200d\U0001f9ba e\u0301",
        "\x00\x7f\t\r\n",
        "<p>red</p>[SEG]",
        " <p>  a </p>  [SEG] ,<image_id>\n<|im_end|>",
        "x" * 2000,
    ],
)
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert 0 not in ids  # bytes stand in for what the vocabulary lacks


def test_the_saved_file_is_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    loaded = Tokenizer.from_str(tokenizer.to_str())
    text = prompt_texts("Please segment the dog.")[1] + "[SEG]<image_id> <p> the dog </p> [SEG]. ü"
    assert encode(loaded, text) == encode(tokenizer, text)
    assert loaded.decode(encode(loaded, text), skip_special_tokens=False) == text


def test_the_prompt_is_cut_at_the_image(tokenizer: Tokenizer) -> None:
    packer = Packer(tokenizer, tokens_per_tile=16)
    before = "<|im_start|>system\nYou are LIRA.<|im_end|><|im_start|>user\n"
    after = "\nWhy {not}?<|im_end|><|im_start|>assistant\n"
    assert packer.before == encode(tokenizer, before)
    assert packer.after.format(question="Why {not}?") == after
    assert prompt_texts("Why {not}?") == (before, after)
