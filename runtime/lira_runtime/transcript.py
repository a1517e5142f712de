"""How an answer grows, event by event: its clean text, and its phrases with their masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lira_engine.bundle.manifest import TokenSpec
from lira_runtime.answer import Answer, FinishedEvent, Phrase, PhraseEvent
from lira_runtime.events import LoopEvent, MaskEvent, RegionEvent, TokenEvent
from lira_runtime.masks import Mask
from lira_runtime.timings import Timings
from lira_runtime.tokenizer import IncrementalDecoder, TextCoder
from lira_runtime.turns import Turn


class CleanText:
    """Growing text without tags. A removed tag leaves at most one blank, and none before punctuation."""

    def __init__(self) -> None:
        self.text = ""
        self._space = ""  # pending blanks, written when something visible follows
        self._tag_removed = False  # since the last visible character

    def remove_tag(self) -> None:
        self._tag_removed = True

    def add(self, piece: str) -> str:
        """Return what `text` grew by."""
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
    """A phrase of an unfinished answer."""

    mask: int | None
    start: int | None = None  # unknown until its first visible character
    end: int | None = None  # unknown until </p>
    told: bool = False  # whether its PhraseEvent was given


class Transcript:
    """Collects the loop's events, in order, and becomes an Answer.

    The clean text is without `[SEG]`, `<image_id>`, `<p>`, `</p>` and the stop tokens. It removes them by
    their ids: the same characters, spelt by ordinary tokens, stay text.
    """

    def __init__(self, tokenizer: TextCoder, tokens: TokenSpec, label: str = "") -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._tags = {tokens.seg, tokens.image_id, tokens.p, tokens.p_end, tokens.bos, *tokens.eos}
        self._label = label
        self._decoder = IncrementalDecoder(tokenizer)
        self._clean = CleanText()
        self._phrases: list[_OpenPhrase] = []
        self._closed: _OpenPhrase | None = None  # only blanks follow its </p> so far
        self._taken: int | None = None  # mask of a region whose <p> is still to come
        self._segs: dict[int, tuple[int, _OpenPhrase | None]] = {}  # [SEG]'s step -> place, phrase before it
        self._unnamed: dict[int, int] = {}  # masks without a phrase -> place
        self._token_ids: list[int] = []
        self._masks: list[Mask] = []
        self._regions: list[RegionEvent] = []

    def add(self, event: LoopEvent) -> Iterator[LoopEvent | PhraseEvent]:
        """Add the next event; yield it, a TokenEvent with its text, and the phrase that it completes."""
        match event:
            case TokenEvent():
                event = replace(event, text=self._add_token(event))
            case MaskEvent():
                self._add_mask(event)
            case RegionEvent():
                self._add_region(event)
        yield event
        for phrase in self._phrases:
            if phrase.end is not None and phrase.mask is not None and not phrase.told:
                phrase.told = True
                yield PhraseEvent(self._phrase(phrase, phrase.end), phrase.mask)

    def _add_token(self, event: TokenEvent) -> str:
        """Return what the clean text grew by."""
        self._token_ids.append(event.token_id)
        if event.token_id == self._tokens.seg:
            self._segs[event.step] = len(self._clean.text), self._closed
            self._closed = None
        return self._add_text(event.token_id)

    def _add_mask(self, event: MaskEvent) -> None:
        place, phrase = self._segs[event.token_step]
        self._masks.append(event.mask)
        if phrase is None:
            self._unnamed[event.index] = place
        elif phrase.mask is None:
            phrase.mask = event.index

    def _add_region(self, event: RegionEvent) -> None:
        self._regions.append(event)
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
        self._clean.add(piece[: len(piece) - len(piece.lstrip())])  # decoders may put a blank before a tag
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

    def _phrase(self, phrase: _OpenPhrase, end: int) -> Phrase:
        start = end if phrase.start is None else phrase.start
        text = self._clean.text[start:end]
        if phrase.mask is None:
            return Phrase(text, start, end, None)
        return Phrase(text or self._label, start, end, self._masks[phrase.mask])

    def finish(
        self, finish_reason: str, timings: Timings, turn: Turn, seg_logits: Sequence[np.ndarray] = ()
    ) -> Iterator[PhraseEvent | FinishedEvent]:
        """Yield the phrases that were not known before, then the answer. A phrase without its `</p>` ends
        where the text ends."""
        phrases, late = [], []
        for phrase in self._phrases:
            whole = self._phrase(phrase, len(self._clean.text) if phrase.end is None else phrase.end)
            if phrase.mask is not None and not phrase.told:
                late.append(PhraseEvent(whole, phrase.mask))
            if phrase.mask is not None or whole.start < whole.end:
                phrases.append(whole)
        for index, at in self._unnamed.items():
            phrases.append(Phrase(self._label, at, at, self._masks[index]))
            late.append(PhraseEvent(phrases[-1], index))
        yield from late
        yield FinishedEvent(
            Answer(
                text=self._clean.text,
                raw_text=self._tokenizer.decode(self._decoder.ids),
                token_ids=tuple(self._token_ids),
                phrases=tuple(sorted(phrases, key=lambda phrase: (phrase.start, phrase.end))),
                masks=tuple(self._masks),
                regions=tuple(self._regions),
                finish_reason=finish_reason,
                timings=timings,
                turn=turn,
                _seg_logits=tuple(seg_logits),
                _tokenizer=self._tokenizer,
            )
        )
