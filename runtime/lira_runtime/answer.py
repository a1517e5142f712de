"""An answer: clean text, phrases with their masks, words ranked at `[SEG]`; and how it grows by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lira_engine.bundle.manifest import TokenSpec
from lira_engine.errors import LiraError
from lira_runtime import arguments
from lira_runtime.events import MaskEvent, RegionEvent
from lira_runtime.masks import Mask
from lira_runtime.timings import Timings
from lira_runtime.tokenizer import IncrementalDecoder, TextCoder


@dataclass(frozen=True)
class Phrase:
    """What a mask shows: `text` is `answer.text[start:end]`.

    A mask that the answer does not name (referring segmentation: the answer is just `[SEG]`) has
    start == end, the place of its `[SEG]`, and `text` is the expression that was asked for, or "".
    `mask` is None where the answer named something and made no mask of it.
    """

    text: str
    start: int
    end: int
    mask: Mask | None


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    `masks` holds one mask per `[SEG]`, in order; `phrases` what is worth showing: in an answer with ILVC,
    `[SEG]<image_id>{region} <p> phrase </p> [SEG]`, the phrase has the mask that `<image_id>` took, and the
    closing `[SEG]`, which repeats it, appears in `masks` only.
    """

    text: str  # without tags
    raw_text: str  # with tags, and with the text that follows a region (" <p>")
    token_ids: tuple[int, ...]  # as chosen, the stop token included
    phrases: tuple[Phrase, ...]
    masks: tuple[Mask, ...]
    regions: tuple[RegionEvent, ...]
    finish_reason: str  # "stop", or "length": max_new_tokens or the KV cache was used up
    timings: Timings
    _seg_logits: tuple[np.ndarray, ...] = field(repr=False, default=())
    _tokenizer: TextCoder | None = field(repr=False, default=None)

    def attributes(self, words: Sequence[str], seg: int = 0, top: int = 5) -> list[tuple[str, float]]:
        """The `top` of `words` that describe the object of mask `seg` best, with probabilities (AttrEval).

        Softmax, over these words alone, of the next-token logits of the pass that read the `[SEG]`; a word
        counts by its first token. The probabilities of all words sum to 1. Source: the paper's supplementary
        text, section 4. Raises LiraError where the answer has no such mask, for words that the vocabulary
        lacks, and for words that begin with the same token.
        """
        seg = arguments.whole("seg", seg, "the number of a mask")
        top = arguments.whole("top", top, "0 or more", 0)
        if not 0 <= seg < len(self._seg_logits):
            raise LiraError(
                f"the answer has {len(self._seg_logits)} masks; expected more than {seg} to rank words"
            )
        assert self._tokenizer is not None
        by_token = first_tokens(self._tokenizer, words)
        logits = self._seg_logits[seg][list(by_token)].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        ranked = sorted(
            zip(by_token.values(), probabilities.tolist(), strict=True), key=lambda pair: -pair[1]
        )
        return ranked[:top]


def first_tokens(tokenizer: TextCoder, words: Sequence[str]) -> dict[int, str]:
    """The words by the token that each begins with inside a sentence.

    Raises LiraError for no words, for a word that the vocabulary lacks, and for two with the same token.
    """
    words = arguments.words("words", words)
    if not words:
        raise LiraError("there are no words to rank; expected at least one")
    # Some tokenizers put a space in front of every text: what "a" leaves over of "a word" is free of that.
    lead = tokenizer.encode("a")
    by_token: dict[int, str] = {}
    for word in words:
        ids = tokenizer.encode(f"a {word.strip()}")[len(lead) :]
        # A vocabulary that spells the word byte by byte begins with a lone space: that would rank nothing.
        if not ids or ids[0] == tokenizer.unknown_id or not tokenizer.decode(ids[:1]).strip():
            raise LiraError(f"the vocabulary has no token for {word!r}; expected words that the model knows")
        if ids[0] in by_token:
            other = by_token[ids[0]]
            raise LiraError(
                f"{other!r} and {word!r} begin with the same token; expected words that differ there"
            )
        by_token[ids[0]] = word
    return by_token


class CleanText:
    """Text without tags, growing. A removed tag leaves one blank at most, and none before punctuation."""

    def __init__(self) -> None:
        self.text = ""
        self._space = ""  # seen, and kept until something visible follows
        self._tag_removed = False  # since the last visible character

    def remove_tag(self) -> None:
        self._tag_removed = True

    def add(self, piece: str) -> str:
        """Returns what `text` grew by."""
        length = len(self.text)
        for character in piece:
            if character.isspace():
                self._space += character
                continue
            if self.text:
                self.text += self._gap(character)
            self.text += character
            self._space = ""
            self._tag_removed = False
        return self.text[length:]

    def _gap(self, following: str) -> str:
        if not self._tag_removed:
            return self._space
        if following in ".,;:!?":
            return ""
        return "\n" if "\n" in self._space else self._space[:1]


@dataclass
class _OpenPhrase:
    """A phrase while the answer is being written."""

    mask: int | None
    start: int | None = None  # unknown until its first visible character
    end: int | None = None  # unknown until </p>


class Transcript:
    """Collects the loop's events, in order, and becomes an Answer.

    Not part of the clean text are `[SEG]`, `<image_id>`, `<p>`, `</p>` and the stop tokens: told by their
    ids, so that the same characters, spelt out by ordinary tokens, stay text.
    """

    def __init__(self, tokenizer: TextCoder, tokens: TokenSpec, label: str = "") -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._tags = {tokens.seg, tokens.image_id, tokens.p, tokens.p_end, tokens.bos, *tokens.eos}
        self._label = label
        self._decoder = IncrementalDecoder(tokenizer)
        self._clean = CleanText()
        self._phrases: list[_OpenPhrase] = []
        self._closed: _OpenPhrase | None = None  # its </p> was the last thing but blanks
        self._taken: int | None = None  # mask of the region that awaits its <p>
        self._segs: dict[int, tuple[int, _OpenPhrase | None]] = {}  # [SEG]'s step -> place, phrase before it
        self._unnamed: dict[int, int] = {}  # masks no phrase has -> place
        self.token_ids: list[int] = []
        self.masks: list[Mask] = []
        self.regions: list[RegionEvent] = []

    def add_token(self, token_id: int, step: int) -> str:
        """Returns what the clean text grew by."""
        self.token_ids.append(token_id)
        if token_id == self._tokens.seg:
            self._segs[step] = len(self._clean.text), self._closed
            self._closed = None
        return self._add_text(token_id)

    def add_mask(self, event: MaskEvent) -> None:
        place, phrase = self._segs[event.token_step]
        self.masks.append(event.mask)
        if phrase is None:
            self._unnamed[event.index] = place
        elif phrase.mask is None:
            phrase.mask = event.index

    def add_region(self, event: RegionEvent) -> None:
        self.regions.append(event)
        self._taken = event.mask_index
        for token_id in event.suffix_ids:
            self._add_text(token_id)

    def _add_text(self, token_id: int) -> str:
        piece = self._decoder.add(token_id)
        if token_id not in self._tags:
            grown = self._clean.add(piece)
            if grown:
                self._closed = None
                latest = self._phrases[-1] if self._phrases else None
                if latest and latest.start is None and latest.end is None:
                    latest.start = len(self._clean.text) - len(grown.lstrip())
            return grown
        self._clean.add(piece[: len(piece) - len(piece.lstrip())])  # a decoder may put a space before the tag
        self._clean.remove_tag()
        if token_id == self._tokens.p:
            self._open_phrase()
        elif token_id == self._tokens.p_end:
            self._close_phrase()
        return ""

    def _open_phrase(self) -> None:
        self._close_phrase()
        if self._taken is not None:
            self._unnamed.pop(self._taken, None)
        self._phrases.append(_OpenPhrase(self._taken))
        self._taken = None

    def _close_phrase(self) -> None:
        if self._phrases and self._phrases[-1].end is None:
            self._closed = self._phrases[-1]
            self._closed.end = len(self._clean.text)

    def finish(self, finish_reason: str, timings: Timings, seg_logits: Sequence[np.ndarray] = ()) -> Answer:
        """The answer; a phrase that was cut off ends where the text ends."""
        text = self._clean.text
        phrases = []
        for phrase in self._phrases:
            end = len(text) if phrase.end is None else phrase.end
            start = end if phrase.start is None else phrase.start
            if phrase.mask is not None:
                phrases.append(Phrase(text[start:end] or self._label, start, end, self.masks[phrase.mask]))
            elif start < end:
                phrases.append(Phrase(text[start:end], start, end, None))
        phrases += [Phrase(self._label, at, at, self.masks[index]) for index, at in self._unnamed.items()]
        return Answer(
            text=text,
            raw_text=self._tokenizer.decode(self._decoder.ids),
            token_ids=tuple(self.token_ids),
            phrases=tuple(sorted(phrases, key=lambda phrase: (phrase.start, phrase.end))),
            masks=tuple(self.masks),
            regions=tuple(self.regions),
            finish_reason=finish_reason,
            timings=timings,
            _seg_logits=tuple(seg_logits),
            _tokenizer=self._tokenizer,
        )
