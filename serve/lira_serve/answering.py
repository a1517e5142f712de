"""One answer, in the engines' thread, as events of plain data in the order in which the loop makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from lira_runtime.answer import Answer, FinishedEvent, Phrase, PhraseEvent, first_tokens
from lira_runtime.events import MaskEvent, RegionEvent, TokenEvent
from lira_runtime.masks import Mask
from lira_runtime.scene import Scene
from lira_serve.asked import Asked, Event
from lira_serve.desk import Desk
from lira_serve.stops import StopTexts


def answer(desk: Desk, asked: Asked) -> Iterator[Event]:
    """Look at the picture unless its scene is kept, answer, and remember the answer.

    Yields events as docs/serve.md describes them: look, text, mask, region, phrase, timings, finish. Raises
    LiraError as `Lira.look` and `Scene.stream` do, before the first token.
    """
    if asked.attributes:
        first_tokens(desk.lira.tokenizer, asked.attributes)
    scene, kept = desk.scenes.scene(asked.digest, asked.image, asked.max_tiles)
    try:
        yield from _Answering(desk, asked, scene, kept).events()
    finally:
        desk.scenes.settle()


class _Answering:
    """The events of an answer, and what the last one tells again."""

    def __init__(self, desk: Desk, asked: Asked, scene: Scene, kept: bool) -> None:
        self._desk = desk
        self._asked = asked
        self._scene = scene
        self._look = {
            "image": {
                "width": scene.image.width,
                "height": scene.image.height,
                "tiles": scene.tiles,
                "sha256": asked.digest,
            },
            "scene": "kept" if kept else "new",
        }
        self._stops = StopTexts(asked.stop)
        self._masks: list[Event] = []
        self._tokens: list[Event] = []
        self._tags = _tags(desk)

    def events(self) -> Iterator[Event]:
        timings = asdict(self._scene.look_timings) if self._look["scene"] == "new" else None
        yield {"type": "look", **self._look, "timings": timings}
        turns, as_text = self._desk.turns.history(self._asked)
        question = replace(
            self._asked.question, history=turns, system=self._asked.system, logprobs=self._asked.logprobs
        )
        for event in self._stops.watch(self._scene, self._desk.lira, question):
            match event:
                case TokenEvent():
                    yield self._token(event)
                case MaskEvent():
                    self._masks.append(mask_as_dict(event.index, event.mask))
                    yield {"type": "mask", **self._masks[-1], "step": event.token_step}
                case RegionEvent():
                    yield {"type": "region", "mask": event.mask_index, "box": event.box_xyxy}
                case PhraseEvent():
                    self._stops.hold(event)
                case FinishedEvent():
                    yield from self._finish(event.answer, as_text)
            yield from self._phrases()

    def _token(self, event: TokenEvent) -> Event:
        text = self._stops.shown(event.text)
        token: dict[str, Any] = {
            "type": "text",
            "text": text,
            "token_id": event.token_id,
            "step": event.step,
        }
        if event.token_id in self._tags:
            token["tag"] = self._tags[event.token_id]
        if self._asked.logprobs:
            token |= {"token": self._desk.lira.tokenizer.decode([event.token_id]), "logprob": event.logprob}
            self._tokens.append(token)
        return token

    def _phrases(self) -> Iterator[Event]:
        for event in self._stops.shown_phrases():
            yield {"type": "phrase", **_phrase(event.phrase, event.mask_index)}

    def _finish(self, found: Answer, as_text: int) -> Iterator[Event]:
        if rest := self._stops.rest(found.text):
            yield {"type": "text", "text": rest, "token_id": None, "step": None}
        yield from self._phrases()
        content = self._stops.cut(found.text)
        timings = found.timings.as_dict()
        yield {"type": "timings", **timings}
        turn = None
        if content == found.text:  # else the turn has rows that the client never saw
            turn = self._desk.turns.remember(self._asked, content, found.turn)
        self._desk.scenes.settle()
        yield {
            "type": "finish",
            "content": content,
            "raw_text": found.raw_text,
            "turn": turn,
            "phrases": [
                _phrase(phrase, None if phrase.mask is None else found.masks.index(phrase.mask))
                for phrase in found.phrases
                if self._stops.shows(phrase.end)
            ],
            "masks": self._masks,
            "regions": [{"mask": region.mask_index, "box": region.box_xyxy} for region in found.regions],
            "attributes": self._attributes(found),
            **self._look,
            "history": {
                "turns": len(self._asked.history),
                "rows_kept": found.timings.history_kept,
                "as_text": as_text,
            },
            "timings": timings,
            "finish_reason": found.finish_reason,
            "logprobs": self._tokens if self._asked.logprobs else None,
            "usage": {
                "prompt_tokens": found.timings.prompt_tokens,
                "cached_tokens": found.timings.cached_tokens,
                "completion_tokens": len(found.token_ids),
            },
            "cache": {
                "scenes": len(self._desk.scenes),
                "bytes": self._desk.scenes.nbytes,
                "evictions": self._desk.scenes.evictions,
            },
        }

    def _attributes(self, found: Answer) -> list[Event]:
        words = self._asked.attributes
        return [
            {
                "mask": index,
                "words": [
                    {"word": word, "probability": share}
                    for word, share in found.attributes(words, index, len(words))
                ],
            }
            for index in range(len(found.masks) if words else 0)
        ]


def mask_as_dict(index: int, mask: Mask) -> Event:
    """Return a mask's number, box (right and bottom exclusive; null if it is empty), score and COCO RLE."""
    return {"id": index, "box": mask.box_xyxy, "score": mask.score, "rle": mask.rle}


def _phrase(phrase: Phrase, mask: int | None) -> Event:
    return {"text": phrase.text, "start": phrase.start, "end": phrase.end, "mask": mask}


def _tags(desk: Desk) -> dict[int, str]:
    """Return the texts of the tokens that are no text of an answer."""
    tokens = desk.lira.manifest.tokens
    ids = (tokens.seg, tokens.image_id, tokens.p, tokens.p_end, *tokens.eos)
    return {token: desk.lira.tokenizer.decode([token]).strip() for token in ids}
