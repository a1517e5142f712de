"""What an answer cost, by stage. All times are seconds of wall clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lira_engine.engines.runner import KvCache, LlmOutput
    from lira_runtime.loop import Llm

AUTHORS_TOKENS_PER_SECOND = 21.6  # LIRA-2B, referring segmentation (paper, supplementary text, section 7)


@dataclass
class LookTimings:
    """What it cost to look at an image: once, however many questions follow. On a GPU the pixel encoder runs
    beside the semantic one, and `encode_pixel` is what remained to wait for."""

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

    A later question about the same image pays for neither the encoders nor the prefill of the image's tokens:
    its `look` is zero and its `prefill_tokens` are those of the question alone. Masks are waited for when
    looked at, so `masks` and what follows from it may still grow after the answer is complete.
    """

    look: LookTimings = field(default_factory=LookTimings)
    new_tokens: int = 0
    prefill_tokens: int = 0
    prefill: float = 0.0
    ttft: float = 0.0  # time to the first token, the look included if this answer paid for it
    decode: list[float] = field(default_factory=list)  # LLM passes that read one token
    region_prefill: list[float] = field(default_factory=list)  # LLM passes that read a whole region
    regions: list[float] = field(default_factory=list)  # crop and semantic encoder, mask not included
    masks: list[float] = field(default_factory=list)  # waiting for the pixel decoder
    _answering: float = 0.0
    _late_masks: float = 0.0
    _running: bool = False

    @property
    def total(self) -> float:
        """The look, if paid here, the answer, and masks decoded since. The caller's own time is not in it."""
        return self.look.total + self._answering + self._late_masks

    @property
    def decode_tokens_per_second(self) -> float:
        """Passes that read one token, per second of LLM time; 0.0 if there was none."""
        spent = sum(self.decode)
        return len(self.decode) / spent if spent else 0.0

    @property
    def end_to_end_tokens_per_second(self) -> float:
        """All tokens of the answer over `total`."""
        return self.new_tokens / self.total if self.total else 0.0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Time inside counts as answering; what the consumer of a stream does between events does not."""
        started = time.perf_counter()
        self._running = True
        try:
            yield
        finally:
            self._running = False
            self._answering += time.perf_counter() - started

    def note_mask(self, seconds: float) -> None:
        """A mask was waited for, inside the loop or later."""
        self.masks.append(seconds)
        if not self._running:
            self._late_masks += seconds

    def note_first_token(self) -> None:
        """To be called between the first token and the next."""
        self.ttft = self.total

    def as_dict(self) -> dict[str, object]:
        """For JSON: seconds by stage, and the two rates."""
        return {
            "look": {
                "preprocess": self.look.preprocess,
                "encode_semantic": self.look.encode_semantic,
                "encode_pixel": self.look.encode_pixel,
                "sefe": self.look.sefe,
            },
            "prefill_tokens": self.prefill_tokens,
            "prefill": self.prefill,
            "ttft": self.ttft,
            "new_tokens": self.new_tokens,
            "decode": self.decode,
            "region_prefill": self.region_prefill,
            "regions": self.regions,
            "masks": self.masks,
            "total": self.total,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "end_to_end_tokens_per_second": self.end_to_end_tokens_per_second,
        }


class TimedLlm:
    """The LLM as the loop sees it, noting what each pass costs."""

    def __init__(self, llm: Llm, timings: Timings) -> None:
        self._llm = llm
        self._timings = timings
        self.prefilling = True  # until the first token

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        started = time.perf_counter()
        output = self._llm.forward(embeds, cache, logit_positions)
        seconds = time.perf_counter() - started
        if self.prefilling:
            self._timings.prefill_tokens += len(embeds)
            self._timings.prefill += seconds
        else:
            passes = self._timings.decode if len(embeds) == 1 else self._timings.region_prefill
            passes.append(seconds)
        return output
