"""An answer: clean text, phrases with their masks, words ranked at `[SEG]`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lira_engine.errors import LiraError
from lira_runtime import arguments
from lira_runtime.events import MaskEvent, RegionEvent, TokenEvent
from lira_runtime.masks import Mask
from lira_runtime.timings import Timings
from lira_runtime.tokenizer import TextCoder
from lira_runtime.turns import Turn


@dataclass(frozen=True)
class Phrase:
    """What a mask shows: `text` is `answer.text[start:end]`.

    For a mask that the answer does not name (in referring segmentation the answer is just `[SEG]`), `start`
    and `end` are the place of its `[SEG]`, and `text` is the expression that was asked for, or "".
    `mask` is None where the answer marks a phrase but makes no mask for it.
    """

    text: str
    start: int
    end: int
    mask: Mask | None


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    `masks` holds one mask per `[SEG]`, in order. `phrases` holds those to show: in an answer with ILVC,
    `[SEG]<image_id>{region} <p> phrase </p> [SEG]`, the phrase has the mask that `<image_id>` took, and the
    closing `[SEG]`, which repeats it, is in `masks` only.
    """

    text: str  # without tags
    raw_text: str  # with tags, and with the text that follows a region (" <p>")
    token_ids: tuple[int, ...]  # as chosen, the stop token included
    phrases: tuple[Phrase, ...]
    masks: tuple[Mask, ...]
    regions: tuple[RegionEvent, ...]
    finish_reason: str  # "stop", or "length": max_new_tokens, or a full KV cache
    timings: Timings
    turn: Turn = field(repr=False)  # for the history of a later question
    _seg_logits: tuple[np.ndarray, ...] = field(repr=False, default=())
    _tokenizer: TextCoder | None = field(repr=False, default=None)

    def attributes(self, words: Sequence[str], seg: int = 0, top: int = 5) -> list[tuple[str, float]]:
        """Return the `top` of `words` that best describe the object of mask `seg`, with probabilities.

        AttrEval (the paper's supplementary text, section 4): softmax, over the first tokens of these words
        alone, of the logits of the pass that read the `[SEG]`. The probabilities of all words sum to 1.
        Raises LiraError if the answer has no such mask, if the vocabulary lacks a word, or if two words begin
        with the same token.
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


@dataclass(frozen=True)
class PhraseEvent:
    """A phrase is complete and has its mask: one of `Answer.phrases`.

    Masks that no phrase names, and a phrase without its end, are known at the end of the answer alone: their
    events come right before FinishedEvent.
    """

    phrase: Phrase
    mask_index: int  # into Answer.masks


@dataclass(frozen=True)
class FinishedEvent:
    """The answer is complete: the last event of a stream."""

    answer: Answer


Event = TokenEvent | MaskEvent | RegionEvent | PhraseEvent | FinishedEvent
"""What `Scene.stream` yields."""


def last_answer(events: Iterable[Event]) -> Answer:
    """Read a stream to its end and return the answer."""
    answer = None
    for event in events:
        if isinstance(event, FinishedEvent):
            answer = event.answer
    assert answer is not None, "a stream ends with FinishedEvent"
    return answer


def first_tokens(tokenizer: TextCoder, words: Sequence[str]) -> dict[int, str]:
    """Return the words by the token that each begins with inside a sentence.

    Raises LiraError for no words, for a word that the vocabulary lacks, and for two words with one token.
    """
    words = arguments.words("words", words)
    if not words:
        raise LiraError("there are no words to rank; expected at least one")
    # Some tokenizers put a space before every text: the tokens of "a word" behind those of "a" lack it.
    lead = tokenizer.encode("a")
    by_token: dict[int, str] = {}
    for word in words:
        ids = tokenizer.encode(f"a {word.strip()}")[len(lead) :]
        # A vocabulary that spells the word byte by byte starts with a lone space, which is the same for all.
        if not ids or ids[0] == tokenizer.unknown_id or not tokenizer.decode(ids[:1]).strip():
            raise LiraError(f"the vocabulary has no token for {word!r}; expected words that the model knows")
        if ids[0] in by_token:
            other = by_token[ids[0]]
            raise LiraError(
                f"{other!r} and {word!r} begin with the same token; expected words that differ there"
            )
        by_token[ids[0]] = word
    return by_token
