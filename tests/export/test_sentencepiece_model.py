"""InternVL2's tokenizer.model, with a handful of pieces."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from lira_engine.errors import LiraError
from lira_export.sentencepiece_model import read_sentencepiece
from lira_export.tokenizer import add_lira_tokens, read_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
PIECES = [
    ("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL),
    *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
    ("ab", -1.0, NORMAL), ("bc", -2.0, NORMAL), ("▁a", -3.0, NORMAL), ("abc", -4.0, NORMAL),
    ("▁", -10.0, NORMAL), ("a", -11.0, NORMAL), ("b", -12.0, NORMAL), ("c", -13.0, NORMAL),
    ("[UNUSED_TOKEN_1]", 0.0, USER_DEFINED), ("[UNUSED_TOKEN_2]", 0.0, USER_DEFINED),
]  # fmt: skip
ID = {text: i for i, (text, _, _) in enumerate(PIECES)}


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    low = b""
    while value > 0x7F:
        low, value = low + bytes([value & 0x7F | 0x80]), value >> 7
    return low + bytes([value])


def model(kind: int = 2, prefix: bool = False) -> bytes:
    pieces = (
        message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, type_)
        for text, score, type_ in PIECES
    )
    trainer = number(3, kind) + number(35, 1) + number(40, 0)
    normalizer = message(1, b"identity") + number(3, prefix) + number(4, 0)
    return b"".join(message(1, piece) for piece in pieces) + message(2, trainer) + message(3, normalizer)


NO_MESSAGES = (
    number(1, 5),  # a piece that is a number, then one with a number for its score, a trainer that is one
    message(1, message(1, b"a") + number(2, 5)),
    number(2, 5),
    message(1, message(1, b"a")) + message(2, number(3, 2) + number(40, 9)),  # no piece 9 for unknown text
    message(1, message(1, b"a")) + message(2, number(3, 2) + message(40, b"a")),
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(model())
    configure(tmp_path, {ID["[UNUSED_TOKEN_1]"]: "<|im_end|>", len(PIECES): "<img>"})
    return tmp_path


def configure(base: Path, tokens: dict[int, str]) -> None:
    entries = {str(i): {"content": text, "special": True} for i, text in tokens.items()}
    (base / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": entries}))


def spelled(base: Path, text: str) -> list[str]:
    return list(read_tokenizer(base).encode(text, add_special_tokens=False).tokens)


def test_the_best_score_merges_first(base: Path) -> None:
    assert spelled(base, "abc") == ["abc"]  # through "ab"
    assert spelled(base, "cabca") == ["c", "abc", "a"]
    assert spelled(base, " abc") == ["▁", "abc"]  # "ab" before "▁a"
    assert spelled(base, " ac") == ["▁a", "c"]


def test_bytes_spell_text_without_a_piece(base: Path) -> None:
    tokenizer = read_tokenizer(base)
    ids = tokenizer.encode("é\n", add_special_tokens=False).ids
    assert ids == [ID["<0xC3>"], ID["<0xA9>"], ID["<0x0A>"]]
    assert tokenizer.decode(ids) == "é\n"


def test_added_tokens_replace_unused_ones_or_follow(base: Path) -> None:
    tokenizer = read_tokenizer(base)
    ids = tokenizer.encode("a<|im_end|><img>[UNUSED_TOKEN_2]", add_special_tokens=False).ids
    assert ids == [ID["a"], ID["[UNUSED_TOKEN_1]"], len(PIECES), ID["[UNUSED_TOKEN_2]"]]
    assert min(add_lira_tokens(tokenizer).values()) == len(PIECES) + 1


@pytest.mark.parametrize("prefix", [False, True])
def test_a_space_is_put_in_front_if_the_model_says_so(base: Path, prefix: bool) -> None:
    (base / "tokenizer.model").write_bytes(model(prefix=prefix))
    assert spelled(base, "ac") == (["▁a", "c"] if prefix else ["a", "c"])
    tokenizer = read_tokenizer(base)
    assert tokenizer.decode(tokenizer.encode("ac abc").ids) == "ac abc"


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"not a model", model()[:1000], model(kind=1), b"\x80" * 20, *NO_MESSAGES]
)
def test_a_damaged_model_is_refused(base: Path, data: bytes) -> None:
    (base / "tokenizer.model").write_bytes(data)
    with pytest.raises(LiraError, match=r"tokenizer\.model"):
        read_sentencepiece(base)


@pytest.mark.parametrize(
    "config",
    [
        *(None, "", "[]", {}, {"added_tokens_decoder": {"x": {}}}),
        *({"added_tokens_decoder": {"3": {"content": text}}} for text in ([1], None, "\ud800", "x" * 2000)),
    ],
)
def test_a_damaged_tokenizer_configuration_is_refused(base: Path, config: Any) -> None:
    path = base / "tokenizer_config.json"
    path.unlink()
    if config is not None:
        path.write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(LiraError, match=r"tokenizer_config\.json"):
        read_sentencepiece(base)


def test_a_piece_whose_halves_would_take_minutes_is_refused(base: Path) -> None:
    (base / "tokenizer.model").write_bytes(message(1, message(1, b"a" * 2000)) + message(2, number(3, 2)))
    with pytest.raises(LiraError, match="a piece of 2,000 characters, expected at most 1,024"):
        read_sentencepiece(base)


def test_an_added_token_beyond_the_next_row_is_refused(base: Path) -> None:
    configure(base, {len(PIECES) + 5: "<img>"})
    with pytest.raises(LiraError, match="has no place for it"):
        read_sentencepiece(base)
