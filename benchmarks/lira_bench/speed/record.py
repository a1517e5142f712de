"""Engines that note when they ran, and the record of one answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

import numpy as np

from lira_engine.manifest import TensorSpec
from lira_engine.runner import Engines, KvCache, LlmOutput, LlmRunner, StageRunner

Phase = Literal["look", "prefill", "answer"]

# In the order of an answer. The semantic encoder and the language model have names of their own for regions.
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
    """A stage ran once. Times are seconds, `start` since the beginning of the run.

    `rows`: that the language model read, and `context`: that its cache held afterwards.
    """

    stage: str
    start: float
    seconds: float
    rows: int = 0
    context: int = 0


@dataclass(frozen=True)
class Mark:
    """Something happened: a token was chosen, a mask or a region became known."""

    kind: Literal["token", "mask", "region"]
    at: float
    text: str


class Recorder:
    """Collects a run's spans and marks."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget everything; a new run starts now."""
        self.phase: Phase = "look"
        self.spans: list[Span] = []
        self.marks: list[Mark] = []
        self._origin = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._origin

    def mark(self, kind: Literal["token", "mask", "region"], text: str) -> None:
        self.marks.append(Mark(kind, self.now(), text))

    @contextmanager
    def span(self, stage: str) -> Iterator[None]:
        """The block is a run of `stage`; one that raises leaves none."""
        started = self.now()
        yield
        self.spans.append(Span(stage, started, self.now() - started))


class Wrapped:
    """A stage that stands for another one. Derived classes change `run`."""

    def __init__(self, stage: StageRunner) -> None:
        self.stage = stage

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def input_specs(self) -> Mapping[str, TensorSpec]:
        return self.stage.input_specs

    @property
    def output_specs(self) -> Mapping[str, TensorSpec]:
        return self.stage.output_specs

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.stage.run(feeds)

    def close(self) -> None:
        self.stage.close()

    def __enter__(self) -> Wrapped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RecordedStage(Wrapped):
    def __init__(self, stage: StageRunner, recorder: Recorder) -> None:
        super().__init__(stage)
        self._recorder = recorder

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        region = self.name == "semantic_encoder" and self._recorder.phase != "look"
        with self._recorder.span("region_encode" if region else self.name):
            return self.stage.run(feeds)


class RecordedLlm:
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
            stage = "decode" if len(embeds) == 1 else "region_prefill"
        with self._recorder.span(stage):
            output = self._llm.forward(embeds, cache, logit_positions)
        spans = self._recorder.spans
        spans[-1] = replace(spans[-1], rows=len(embeds), context=cache.length)
        return output

    def close(self) -> None:
        self._llm.close()

    def __enter__(self) -> RecordedLlm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def recorded(engines: Engines, recorder: Recorder) -> Engines:
    """The same engines, noting their runs in `recorder`."""
    return replace(
        engines,
        semantic_encoder=RecordedStage(engines.semantic_encoder, recorder),
        pixel_encoder=RecordedStage(engines.pixel_encoder, recorder),
        sefe=RecordedStage(engines.sefe, recorder),
        llm=RecordedLlm(engines.llm, recorder),
        pixel_decoder=RecordedStage(engines.pixel_decoder, recorder),
    )
