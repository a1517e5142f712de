"""Measure one answer, from the image file to the shown masks, with every stage that ran for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from PIL.Image import Image

from lira_bench.forced import forced_tokens
from lira_bench.speed.record import Mark, Recorder, Span
from lira_runtime import Answer, Lira
from lira_runtime.answer import FinishedEvent
from lira_runtime.events import MaskEvent, RegionEvent, TokenEvent
from lira_runtime.prompts import Ilvc, Prompt, banned_tokens, encodes_regions
from lira_runtime.sampling import make_sampler


@dataclass(frozen=True)
class Question:
    """What is asked. `forced`: all tokens of the answer, or None if the model chooses them. `max_tiles`: most
    tiles of the image; None is the bundle's number."""

    task: str
    prompt: Prompt
    ilvc: Ilvc
    forced: tuple[int, ...] | None
    max_tiles: int | None = None


@dataclass(frozen=True)
class Run:
    """A measured answer. All times are seconds.

    Attributes:
        size: width and height of the image, pixels.
        ttft: time to the first token, from the image file on. total: time to the last shown mask.
        decode_tokens_per_s: decode steps per second of the language model's time alone.
        end_to_end_tokens_per_s: all tokens over `total`.
        regions: seconds of crop and encoder, per region. masks: number of decoded masks.
        drafted, accepted: rows that were read ahead, and those that saved a pass of the language model.
    """

    image: str
    size: tuple[int, int]
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...]
    new_tokens: int
    ttft: float
    total: float
    decode_tokens_per_s: float
    end_to_end_tokens_per_s: float
    regions: tuple[float, ...]
    masks: int
    finish_reason: str
    drafted: int = 0
    accepted: int = 0

    @property
    def tokens_per_pass(self) -> float:
        """Return the answer's tokens per pass of the language model that gave one."""
        return self.new_tokens / (self.new_tokens - self.accepted)

    def seconds(self, stage: str) -> list[float]:
        """Return the seconds of each run of the stage."""
        return [span.seconds for span in self.spans if span.stage == stage]

    def token_gaps(self) -> list[float]:
        """Return the inter-token latencies, with the masks and regions between two tokens."""
        times = [mark.at for mark in self.marks if mark.kind == "token"]
        return [later - earlier for earlier, later in pairwise(times)]


def question(
    lira: Lira, task: str, expression: str | None, ilvc: Ilvc, forced: bool, max_tiles: int | None = None
) -> Question:
    """Return the question about a task.

    Raises LiraError if the bundle lacks the task, or if `expression` is missing or not allowed there.
    """
    prompt = lira.prompt(task=task, expression=expression, ilvc=ilvc)
    if not forced:
        return Question(task, prompt, ilvc, None, max_tiles)
    tokens = forced_tokens(task, lira.manifest.tokens, lira.tokenizer, encodes_regions(ilvc))
    return Question(task, replace(prompt, max_new_tokens=len(tokens)), ilvc, tuple(tokens), max_tiles)


def measure(lira: Lira, recorder: Recorder, image: Path | Image, asked: Question) -> Run:
    """Encode the image, ask, and return what was measured; `recorder` records the engines of `lira`."""
    banned = banned_tokens(asked.ilvc, lira.manifest.tokens)
    forced = None if asked.forced is None else dict(enumerate(asked.forced))
    recorder.begin()
    scene = lira.look(image, max_tiles=asked.max_tiles)
    recorder.spans.insert(0, Span("preprocess", 0.0, scene.look_timings.preprocess))
    recorder.phase = "prefill"
    answer: Answer | None = None
    choose = make_sampler(banned=banned)
    use_ilvc = encodes_regions(asked.ilvc)
    for event in scene.stream_prompt(asked.prompt, choose, use_ilvc=use_ilvc, forced=forced):
        if isinstance(event, TokenEvent):
            recorder.mark("token", lira.tokenizer.decode([event.token_id]) or str(event.token_id))
            recorder.phase = "answer"
        elif isinstance(event, MaskEvent):
            recorder.mark("mask", f"mask {event.index + 1}")
        elif isinstance(event, RegionEvent):
            recorder.mark("region", f"region of mask {event.mask_index + 1}")
        elif isinstance(event, FinishedEvent):
            answer = event.answer
    assert answer is not None, "a stream ends with FinishedEvent"
    for phrase in answer.phrases:  # masks are decoded on first access
        if phrase.mask is not None:
            _ = phrase.mask.binary
    timings = answer.timings
    return Run(
        image=image.name if isinstance(image, Path) else "generated",
        size=scene.image.size,
        spans=tuple(recorder.spans),
        marks=tuple(recorder.marks),
        new_tokens=timings.new_tokens,
        ttft=timings.ttft,
        total=timings.total,
        decode_tokens_per_s=timings.decode_tokens_per_second,
        end_to_end_tokens_per_s=timings.end_to_end_tokens_per_second,
        regions=tuple(timings.regions),
        masks=len(timings.masks),
        finish_reason=answer.finish_reason,
        drafted=timings.drafted,
        accepted=timings.accepted,
    )
