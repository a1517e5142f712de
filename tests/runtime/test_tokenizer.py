"""The tokenizers library as the runtime uses it, on a byte-fallback and on a word-level vocabulary."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from lira_engine.errors import LiraError
from lira_runtime.answer import first_tokens
from lira_runtime.tokenizer import IncrementalDecoder, Tokenizer


@pytest.fixture
def sentencepiece(tmp_path: Path) -> Tokenizer:
    """Converted from SentencePiece, as InternLM2's: spaces are "▁", missing signs are spelt in bytes."""
    pieces = [
        "<unk>",
        "<s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abdehlr",
        "▁r",
        "▁b",
        "▁a",
        "re",
        "▁re",
    ]
    merges = [("▁", "r"), ("▁", "b"), ("▁", "a"), ("r", "e"), ("▁r", "e")]
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    library = Library(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    library.add_special_tokens([AddedToken("[SEG]", special=True), AddedToken("<p>", special=True)])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.enable_truncation(2)
    library.enable_padding(length=9, pad_id=1, pad_token="<s>")
    library.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture
def word_level(tmp_path: Path) -> Tokenizer:
    """One token per word; the decoder adds the spaces."""
    library = Library(models.WordLevel({"<unk>": 0, "a": 1, "red": 2, "ball": 3, ".": 4}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens([AddedToken("[SEG]", special=True)])
    library.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


def test_text_becomes_its_ids(sentencepiece: Tokenizer, word_level: Tokenizer) -> None:
    assert sentencepiece.id_of("[SEG]") in sentencepiece.encode("a [SEG]")
    assert len(sentencepiece.encode("red a b red")) > 2  # the file's truncation is off
    assert 1 not in sentencepiece.encode("a")  # and so are its padding, and what it puts before a text
    assert sentencepiece.unknown_id == 0
    assert word_level.encode("a red dog") == [1, 2, 0]
    assert word_level.id_of("dog") is None


@pytest.mark.parametrize("text", ["red ball", "a € b", "a[SEG] <p> 🙂é[SEG]", "日本 red", " a", "\n a\n"])
def test_pieces_joined_are_the_text_of_the_whole(sentencepiece: Tokenizer, text: str) -> None:
    decoder = IncrementalDecoder(sentencepiece)
    ids = sentencepiece.encode(text)
    pieces = [decoder.add(token_id) for token_id in ids]
    assert "".join(pieces) == sentencepiece.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_word_level_pieces_have_their_spaces(word_level: Tokenizer) -> None:
    decoder = IncrementalDecoder(word_level)
    pieces = [decoder.add(token_id) for token_id in word_level.encode("a red ball [SEG].")]
    assert "".join(pieces) == "a red ball [SEG] ."
    assert pieces[1] == " red"


def test_random_bytes_never_lose_what_follows(sentencepiece: Tokenizer) -> None:
    chance = random.Random(0)
    after = sentencepiece.encode("red")
    for _ in range(50):
        ids = [chance.randrange(2, 258) for _ in range(6)] + after
        decoder = IncrementalDecoder(sentencepiece)
        text = "".join(decoder.add(token_id) for token_id in ids)
        assert text.endswith("red")


def test_words_that_the_vocabulary_lacks_are_not_ranked(word_level: Tokenizer) -> None:
    assert first_tokens(word_level, ["red", "ball"]) == {2: "red", 3: "ball"}
    with pytest.raises(LiraError, match="the vocabulary has no token for 'dog'"):
        first_tokens(word_level, ["red", "dog"])


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(LiraError, match=r"is not a tokenizer\.json"):
        Tokenizer(file)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"},
        {"type": "Unigram", "vocab": [["a", -1.0]]},
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]},  # the library panics
    ],
)
def test_a_tokenizer_that_fails_at_texts_is_refused_when_it_is_opened(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(
        LiraError, match=r"^[^\n]+ is not a tokenizer\.json \([^\n]+\): export the bundle again$"
    ):
        Tokenizer(file)
