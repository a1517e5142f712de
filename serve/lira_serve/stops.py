"""Texts that end an answer (`stop` of OpenAI's request)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lira_runtime.answer import Event, PhraseEvent
from lira_runtime.lira import Lira
from lira_runtime.prompts import Question, banned_tokens, encodes_regions
from lira_runtime.sampling import ScoringSampler
from lira_runtime.scene import Scene


class StopTexts:
    """Ends an answer whose text has one of some texts, and shows the text only up to there.

    The model is made to end its turn at the token after such a text, so that masks, phrases and timings are
    those of a whole answer. Text that a stop text may begin with is held back until it is known not to.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._text = ""  # of the answer
        self._shown = 0  # characters of it
        self._found: int | None = None  # place of a stop text
        self._phrases: list[PhraseEvent] = []  # whose text is not shown yet

    def watch(self, scene: Scene, lira: Lira, question: Question) -> Iterator[Event]:
        """Yield the answer's events."""
        if not self._texts:
            yield from scene.stream(question)
            return
        tokens = lira.manifest.tokens
        choose = replace(question, logprobs=False).sampler(tokens)

        def ending(logits: np.ndarray) -> int:
            return choose(logits) if self._found is None else tokens.eos[0]

        scored = ScoringSampler(ending, banned_tokens(question.ilvc, tokens)) if question.logprobs else ending
        yield from scene.stream_prompt(lira.prompt(question), scored, use_ilvc=encodes_regions(question.ilvc))

    def shown(self, piece: str) -> str:
        """Take the answer's next text; return what can be shown now."""
        self._text += piece
        if self._found is None:
            places = [place for text in self._texts if (place := self._text.find(text)) >= 0]
            self._found = min(places, default=None)
        until = len(self._text) - self._held() if self._found is None else self._found
        grown = self._text[self._shown : until]
        self._shown = max(self._shown, until)
        return grown

    def rest(self, text: str) -> str:
        """Return what was held back of a whole answer's text, and is to be shown after all."""
        until = self.cut(text)
        grown = until[self._shown :]
        self._shown = max(self._shown, len(until))
        return grown

    def hold(self, phrase: PhraseEvent) -> None:
        """Take a phrase that is complete."""
        self._phrases.append(phrase)

    def shown_phrases(self) -> list[PhraseEvent]:
        """Return the held phrases whose text is shown by now, once."""
        found = [event for event in self._phrases if event.phrase.end <= self._shown]
        self._phrases = [event for event in self._phrases if event.phrase.end > self._shown]
        return found

    def cut(self, text: str) -> str:
        """Return a whole answer's text up to the first stop text."""
        return text if self._found is None else text[: self._found]

    def shows(self, end: int) -> bool:
        """Whether a whole answer's text up to `end` is shown."""
        return self._found is None or end <= self._found

    def _held(self) -> int:
        """Return the length of the longest end of the text that a stop text begins with."""
        most = max(map(len, self._texts), default=1) - 1
        for length in range(min(most, len(self._text)), 0, -1):
            if any(text.startswith(self._text[-length:]) for text in self._texts):
                return length
        return 0
