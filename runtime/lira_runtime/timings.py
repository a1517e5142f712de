"""What an answer cost, by stage. All times are seconds of wall-clock time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lira_engine.engines.runner import KvCache, LlmOutput
from lira_runtime.loop import Llm

T = TypeVar("T")

AUTHORS_TOKENS_PER_SECOND = 21.6  # LIRA-2B, referring segmentation (paper, supplementary text, section 7)


@dataclass
class LookTimings:
    """What it cost to look at an image, once for all questions. On a GPU the pixel encoder runs beside the
    semantic encoder, and `encode_pixel` is the time that was left to wait for it."""

    preprocess: float = 0.0
    encode_semantic: float = 0.0
    encode_pixel: float = 0.0
    sefe: float = 0.0

    @property
    def total(self) -> float:
        return self.preprocess + self.encode_semantic + self.encode_pixel + self.sefe


@dataclass
class Timings:
    """What one answer cost.

    A later question about the same image pays neither for the encoders nor for the prefill of the image's
    rows: its `look` is zero and its `prefill_tokens` are those of the question alone, or of the turns that
    the KV cache does not have either. Masks are decoded at
    first access, so `masks` and `total` may still grow after the answer is complete.
    """

    look: LookTimings = field(default_factory=LookTimings)
    new_tokens: int = 0
    drafted: int = 0  # rows that were read ahead
    accepted: int = 0  # of these, the rows of tokens that did follow, and so took no pass of their own
    prompt_tokens: int = 0  # rows of the prompt, with those of the image and of earlier turns
    cached_tokens: int = 0  # of these, the rows that the KV cache had
    history_kept: int = 0  # of these, the rows of earlier turns
    prefill_tokens: int = 0  # the other rows of the prompt
    prefill: float = 0.0
    ttft: float = 0.0  # time to first token, with the look if this answer paid for it
    decode: list[float] = field(default_factory=list)  # to read one token each: about 0 if it was read ahead
    region_prefill: list[float] = field(default_factory=list)  # LLM passes that read a region
    regions: list[float] = field(default_factory=list)  # crop and semantic encoder, without the mask
    masks: list[float] = field(default_factory=list)  # waiting for the pixel decoder
    _answering: float = 0.0
    _late_masks: float = 0.0
    _running_since: float | None = None

    @property
    def total(self) -> float:
        """The look, if paid here, the answer, and masks decoded since; without the caller's own time."""
        return self.look.total + self._answering + self._late_masks

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode steps per second of LLM time; 0.0 if there was none."""
        spent = sum(self.decode)
        return len(self.decode) / spent if spent else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens of the answer per pass of the LLM that gave one; 1.0 without drafts."""
        passes = self.new_tokens - self.accepted
        return self.new_tokens / passes if passes else 0.0

    @property
    def end_to_end_tokens_per_second(self) -> float:
        """Tokens of the answer per second of `total`."""
        return self.new_tokens / self.total if self.total else 0.0

    def answering(self, events: Iterable[T]) -> Iterator[T]:
        """Yield `events`, and count the time until each as answering, but not the consumer's time between."""
        self._resume()
        try:
            for event in events:
                self._pause()
                yield event
                self._resume()
        finally:
            self._pause()

    def _resume(self) -> None:
        self._running_since = time.perf_counter()

    def _pause(self) -> None:
        if self._running_since is not None:
            self._answering += time.perf_counter() - self._running_since
            self._running_since = None

    def note_token(self) -> None:
        """Count a token. To be called between one event of `answering` and the next."""
        self.new_tokens += 1
        if self.new_tokens == 1:
            self.ttft = self.total

    def note_mask(self, seconds: float) -> None:
        """Count the time that a mask was waited for, inside the loop or later."""
        self.masks.append(seconds)
        if self._running_since is None:
            self._late_masks += seconds

    def as_dict(self) -> dict[str, object]:
        """Return seconds by stage, and the two rates, for JSON."""
        return {
            "look": {
                "preprocess": self.look.preprocess,
                "encode_semantic": self.look.encode_semantic,
                "encode_pixel": self.look.encode_pixel,
                "sefe": self.look.sefe,
            },
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "history_kept": self.history_kept,
            "prefill_tokens": self.prefill_tokens,
            "prefill": self.prefill,
            "ttft": self.ttft,
            "new_tokens": self.new_tokens,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "tokens_per_pass": self.tokens_per_pass,
            "decode": self.decode,
            "region_prefill": self.region_prefill,
            "regions": self.regions,
            "masks": self.masks,
            "total": self.total,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "end_to_end_tokens_per_second": self.end_to_end_tokens_per_second,
        }


class TimedLlm:
    """The LLM with the time of each pass noted in `timings`: prefill until there is a token, then by rows."""

    def __init__(self, llm: Llm, timings: Timings) -> None:
        self._llm = llm
        self._timings = timings

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        started = time.perf_counter()
        output = self._llm.forward(embeds, cache, logit_positions)
        seconds = time.perf_counter() - started
        if self._timings.new_tokens == 0:
            self._timings.prefill_tokens += len(embeds)
            self._timings.prefill += seconds
        else:
            passes = self._timings.decode if len(embeds) == 1 else self._timings.region_prefill
            passes.append(seconds)
        return output
