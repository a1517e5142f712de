"""The bundle's tokenizer, and detokenizing one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lira_engine.bundle.tokenizer_file import NoTokenizer, tokenizer_of
from lira_engine.errors import LiraError


class TextCoder(Protocol):
    """The part of a tokenizer that the runtime uses."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` and no others. Tags in the text become their ids."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, with special tokens. Bytes that are no character become U+FFFD."""
        ...

    def id_of(self, token: str) -> int | None:
        """Return the id of one vocabulary entry, or None."""
        ...

    @property
    def unknown_id(self) -> int | None:
        """The id of signs that the vocabulary lacks, or None."""
        ...


class Tokenizer:
    """The tokenizer.json of a bundle, read by the library `tokenizers`."""

    def __init__(self, path: Path) -> None:
        import tokenizers  # code with a TextCoder of its own does not need it

        try:
            self._tokenizer = tokenizer_of(lambda: tokenizers.Tokenizer.from_file(str(path)))
        except NoTokenizer as error:
            raise LiraError(f"{path} is not a tokenizer.json ({error}): export the bundle again") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def id_of(self, token: str) -> int | None:
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    @property
    def unknown_id(self) -> int | None:
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        return None if unknown is None else self.id_of(unknown)


class IncrementalDecoder:
    """Decodes token by token; the pieces, joined, are the text of all tokens.

    A token's text depends on its left neighbour (SentencePiece drops the first space of a text, a word-level
    decoder adds spaces between words), and several byte tokens may spell one character. So each piece is the
    difference of two decodings that start one piece earlier, and is held back while it ends in U+FFFD.
    """

    def __init__(self, tokenizer: TextCoder) -> None:
        self.ids: list[int] = []
        self._decode = tokenizer.decode
        self._context = 0  # ids[_context:_done] were the last piece
        self._done = 0

    def add(self, token_id: int) -> str:
        """Return the text that is final with this token: "" while a character is incomplete."""
        self.ids.append(token_id)
        before = self._decode(self.ids[self._context : self._done])
        text = self._decode(self.ids[self._context :])
        if text.endswith("\ufffd"):
            return ""
        self._context, self._done = self._done, len(self.ids)
        return text[len(before) :]
