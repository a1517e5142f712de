"""Engines that record when they ran, and the recorder of one answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lira_engine.engines.runner import (
    Closing,
    Engines,
    Feeds,
    KvCache,
    LlmOutput,
    LlmRunner,
    Stage,
    StageRun,
    StageRunner,
    Tensor,
)

Phase = Literal["look", "prefill", "answer"]

# In the order of an answer. Runs of the semantic encoder and the LLM for a region have their own names.
STAGES = (
    "preprocess",
    "semantic_encoder",
    "pixel_encoder",
    "sefe",
    "prefill",
    "decode",
    "pixel_decoder",
    "region_encode",
    "region_prefill",
)


@dataclass(frozen=True)
class Span:
    """One run of a stage. Times are seconds; `start` counts from the beginning of the answer.

    Attributes:
        seconds: what the run cost the caller, `earlier` included.
        rows: rows that the language model read. context: rows that its cache held afterwards.
        earlier: seconds that it took to start the run, some time before `start`, when the caller waits.
        tiles: that the semantic encoder read.
    """

    stage: str
    start: float
    seconds: float
    rows: int = 0
    context: int = 0
    earlier: float = 0.0
    tiles: int = 0

    @property
    def lasted(self) -> float:
        """Return the seconds from `start` on."""
        return self.seconds - self.earlier


@dataclass(frozen=True)
class Mark:
    """The moment when a token was chosen or a mask or a region became known."""

    kind: Literal["token", "mask", "region"]
    at: float
    text: str


class Recorder:
    """Collects the spans and marks of one answer."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget everything; a new answer starts now."""
        self.phase: Phase = "look"
        self.spans: list[Span] = []
        self.marks: list[Mark] = []
        self._origin = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._origin

    def mark(self, kind: Literal["token", "mask", "region"], text: str) -> None:
        self.marks.append(Mark(kind, self.now(), text))

    @contextmanager
    def span(self, stage: str, earlier: float = 0.0, tiles: int = 0) -> Iterator[None]:
        """Record the block as a run of `stage` that took `earlier` seconds before, unless it raises."""
        started = self.now()
        yield
        seconds = self.now() - started + earlier
        self.spans.append(Span(stage, started, seconds, earlier=earlier, tiles=tiles))


class Wrapped(Stage):
    """A stage around another one. Derived classes override `start`."""

    def __init__(self, stage: StageRunner) -> None:
        self.stage = stage
        self.name = stage.name
        self.input_specs = stage.input_specs
        self.output_specs = stage.output_specs

    def start(self, feeds: Feeds) -> StageRun:
        return self.stage.start(feeds)

    def close(self) -> None:
        self.stage.close()


class RecordedStage(Wrapped):
    """Records what its passes cost the caller: starting them, and waiting for the first result. A GPU may
    take longer, beside other stages."""

    def __init__(self, stage: StageRunner, recorder: Recorder) -> None:
        super().__init__(stage)
        self._recorder = recorder

    def start(self, feeds: Feeds) -> StageRun:
        region = self.name == "semantic_encoder" and self._recorder.phase != "look"
        started = self._recorder.now()
        begun = self.stage.start(feeds)
        starting = self._recorder.now() - started
        stage = "region_encode" if region else self.name
        tiles = feeds["pixel_values"].shape[0] if stage == "semantic_encoder" else 0
        return RecordedRun(begun, self._recorder, stage, starting, tiles)


class RecordedRun:
    def __init__(self, begun: StageRun, recorder: Recorder, stage: str, starting: float, tiles: int) -> None:
        self._begun, self._recorder, self._stage, self._starting = begun, recorder, stage, starting
        self._tiles = tiles
        self._waited = False

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return self._begun.outputs

    def numpy(self, name: str) -> np.ndarray:
        if self._waited:
            return self._begun.numpy(name)
        self._waited = True
        with self._recorder.span(self._stage, earlier=self._starting, tiles=self._tiles):
            return self._begun.numpy(name)


class RecordedLlm(Closing):
    def __init__(self, llm: LlmRunner, recorder: Recorder) -> None:
        self._llm = llm
        self._recorder = recorder

    @property
    def capacity(self) -> int:
        return self._llm.capacity

    def new_cache(self) -> KvCache:
        return self._llm.new_cache()

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        stage = "prefill"
        if self._recorder.phase == "answer":
            own = len(embeds) - len(logit_positions) + 1  # without the rows that are read ahead
            stage = "decode" if own == 1 else "region_prefill"
        with self._recorder.span(stage):
            output = self._llm.forward(embeds, cache, logit_positions)
        spans = self._recorder.spans
        spans[-1] = replace(spans[-1], rows=len(embeds), context=cache.length)
        return output

    def close(self) -> None:
        self._llm.close()


def recorded(engines: Engines, recorder: Recorder) -> Engines:
    """Return the same engines, with their runs recorded in `recorder`."""
    return replace(
        engines,
        semantic_encoder=RecordedStage(engines.semantic_encoder, recorder),
        pixel_encoder=RecordedStage(engines.pixel_encoder, recorder),
        sefe=RecordedStage(engines.sefe, recorder),
        llm=RecordedLlm(engines.llm, recorder),
        pixel_decoder=RecordedStage(engines.pixel_decoder, recorder),
    )
