"""Read a tokenizer.model (SentencePiece BPE), as InternVL2's repositories have it.

They lack a tokenizer.json: they hold a SentencePiece model, and in tokenizer_config.json the tokens that were
added to it or that replace unused ones. The conversion is transformers' for Llama-like models: a pair may
merge if the result is a piece, and the piece with the best score goes first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from lira_engine.bundle.tokenizer_file import NoTokenizer, tokenizer_of
from lira_engine.errors import LiraError

from .file_kinds import refuse_foreign
from .json_files import read_json

_SPACE = "▁"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # sentencepiece_model.proto, SentencePiece.Type
_BPE = 2  # TrainerSpec.ModelType
_LONGEST = 1024  # characters of a piece: InternVL2's have less than a hundred; all its halves are looked up


@dataclass(frozen=True)
class Piece:
    """One row of the vocabulary."""

    text: str
    score: float
    kind: int


def read_sentencepiece(base: Path) -> Tokenizer:
    """Return the tokenizer of a folder with tokenizer.model and tokenizer_config.json.

    Raises:
        LiraError: a file is missing or damaged, the model is not BPE, or an added token has no place.
    """
    path = base / "tokenizer.model"
    refuse_foreign(path)
    try:
        pieces, trainer, normalizer = _parse(path.read_bytes())
        if trainer.get(3) != _BPE or not pieces:
            raise LiraError(
                f"{path}: not a BPE model, which InternVL2's is; expected the base model's own file"
            )
        unknown = pieces[_number(trainer.get(40, 0))].text
        added = _added_tokens(base / "tokenizer_config.json")
    except (ValueError, LookupError, struct.error) as error:
        raise LiraError(f"{path}: not a SentencePiece model ({error}); download it again") from None
    names = {i: added[i]["content"] if i in added else piece.text for i, piece in enumerate(pieces)}
    vocabulary = {name: i for i, name in names.items()}
    merges = _merges([piece for i, piece in enumerate(pieces) if i not in added], vocabulary)
    byte_fallback = bool(trainer.get(35))
    try:
        tokenizer = tokenizer_of(
            lambda: Tokenizer(
                models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
            )
        )
    except NoTokenizer as error:
        raise LiraError(f"{path}: not a SentencePiece model ({error}); download it again") from None
    prefixed = bool(normalizer.get(3, 1))
    steps = [normalizers.Prepend(_SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    own = {i: {"content": piece.text} for i, piece in enumerate(pieces) if piece.kind == _USER_DEFINED}
    for i, token in sorted((own | added).items()):
        flags = {key: bool(token.get(key, False)) for key in ("lstrip", "rstrip", "normalized", "special")}
        tokenizer.add_tokens([AddedToken(token["content"], **flags)])
        if tokenizer.token_to_id(token["content"]) != i:
            raise LiraError(
                f"{base}: tokenizer_config.json gives {token['content']} the id {i}, where {path.name} has "
                "no place for it; download both from the same repository"
            )
    return tokenizer


def _added_tokens(path: Path) -> dict[int, dict[str, Any]]:
    config = read_json(path, "the tokenizer's configuration, beside its model")
    try:
        entries = config["added_tokens_decoder"]
        added = {int(i): {**token, "content": token["content"]} for i, token in entries.items()}
        for token in added.values():
            if not isinstance(token["content"], str) or len(token["content"].encode()) > _LONGEST:
                raise ValueError(f"a token is {ascii(token['content'])[:40]}, expected a short text")
        return added
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LiraError(
            f"{path}: no usable added_tokens_decoder in it ({error}); download it again"
        ) from None


def _merges(pieces: list[Piece], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, best score first; between equals the longer left part."""
    found = []
    for piece in pieces:
        if piece.kind == _NORMAL:
            halves = [(piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text))]
            pairs = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
            found += [(piece.score, len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _parse(data: bytes) -> tuple[list[Piece], dict[int, Any], dict[int, Any]]:
    """Return vocabulary, trainer and normalizer (fields by number) of a serialised ModelProto."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_bytes(value)))
            (score,) = struct.unpack("<f", _bytes(piece.get(2, bytes(4))))
            text = _bytes(piece[1]).decode("utf-8")
            if len(text) > _LONGEST:
                raise ValueError(f"a piece of {len(text):,} characters, expected at most {_LONGEST:,}")
            pieces.append(Piece(text, score, piece.get(3, _NORMAL)))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    return pieces, trainer, normalizer


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("found a text, expected a number")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"found the number {value}, expected a text or a message")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a protocol buffer message's fields: integers, or bytes of longer values."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError("it ends too soon")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends too soon")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise ValueError(f"a number of more than 64 bits at byte {at}")
