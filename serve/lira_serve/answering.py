"""One answer, in the engines' thread, as events of plain data in the order in which the loop makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from lira_runtime import rle
from lira_runtime.answer import Answer, FinishedEvent, PhraseEvent, first_tokens
from lira_runtime.events import MaskEvent, RegionEvent, TokenEvent
from lira_runtime.masks import Mask
from lira_serve.asked import Asked, Event
from lira_serve.desk import Desk
from lira_serve.stops import StopTexts


def answer(desk: Desk, asked: Asked) -> Iterator[Event]:
    """Look at the picture unless its scene is kept, answer, and remember the answer.

    Yields events as docs/serve.md describes them: look, text, mask, region, phrase, timings, finish. Raises
    LiraError as `Lira.look` and `Scene.stream` do, before the first token.
    """
    lira = desk.lira
    if asked.attributes:
        first_tokens(lira.tokenizer, asked.attributes)
    scene, kept = desk.scenes.scene(asked.digest, asked.image, asked.max_tiles)
    image = {
        "width": scene.image.width,
        "height": scene.image.height,
        "tiles": scene.tiles,
        "sha256": asked.digest,
    }
    told = {"image": image, "scene": "kept" if kept else "new"}
    yield {"type": "look", **told, "timings": None if kept else asdict(scene.look_timings)}
    turns, as_text = desk.turns.history(asked)
    question = replace(asked.question, history=turns, system=asked.system, logprobs=asked.logprobs)
    stops = StopTexts(asked.stop)
    masks: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    tags = _tags(lira)
    for event in stops.watch(scene, lira, question):
        match event:
            case TokenEvent():
                text = stops.shown(event.text)
                token = {"type": "text", "text": text, "token_id": event.token_id, "step": event.step}
                if event.token_id in tags:
                    token["tag"] = tags[event.token_id]
                if asked.logprobs:
                    token |= {"token": lira.tokenizer.decode([event.token_id]), "logprob": event.logprob}
                    tokens.append(token)
                yield token
            case MaskEvent():
                masks.append(mask_as_dict(event.index, event.mask))
                yield {"type": "mask", **masks[-1], "step": event.token_step}
            case RegionEvent():
                yield {"type": "region", "mask": event.mask_index, "box": event.box_xyxy}
            case PhraseEvent() if stops.shows(event.phrase.end):
                phrase = event.phrase
                yield {
                    "type": "phrase",
                    "text": phrase.text,
                    "start": phrase.start,
                    "end": phrase.end,
                    "mask": event.mask_index,
                }
            case FinishedEvent():
                yield from _finish(desk, asked, event.answer, masks, tokens, stops, told, as_text)
    desk.scenes.settle()


def _finish(
    desk: Desk,
    asked: Asked,
    found: Answer,
    masks: list[dict[str, Any]],
    tokens: list[dict[str, Any]],
    stops: StopTexts,
    told: dict[str, Any],
    as_text: int,
) -> Iterator[Event]:
    content = stops.cut(found.text)
    if rest := stops.rest(found.text):
        yield {"type": "text", "text": rest, "token_id": None, "step": None}
    timings = found.timings.as_dict()
    yield {"type": "timings", **timings}
    desk.turns.remember(asked, content, found.turn)
    desk.scenes.settle()
    yield {
        "type": "finish",
        "content": content,
        "raw_text": found.raw_text,
        "phrases": [
            {
                "text": phrase.text,
                "start": phrase.start,
                "end": phrase.end,
                "mask": None if phrase.mask is None else found.masks.index(phrase.mask),
            }
            for phrase in found.phrases
            if stops.shows(phrase.end)
        ],
        "masks": masks,
        "regions": [{"mask": region.mask_index, "box": region.box_xyxy} for region in found.regions],
        "attributes": [
            {
                "mask": index,
                "words": [
                    {"word": word, "probability": share}
                    for word, share in found.attributes(asked.attributes, index, len(asked.attributes))
                ],
            }
            for index in range(len(found.masks) if asked.attributes else 0)
        ],
        **told,
        "history": {
            "turns": len(asked.history),
            "rows_kept": found.timings.history_kept,
            "as_text": as_text,
        },
        "timings": timings,
        "finish_reason": found.finish_reason,
        "logprobs": tokens if asked.logprobs else None,
        "usage": {
            "prompt_tokens": found.timings.prompt_tokens,
            "cached_tokens": found.timings.cached_tokens,
            "completion_tokens": len(found.token_ids),
        },
        "cache": {"scenes": len(desk.scenes), "bytes": desk.scenes.nbytes},
    }


def mask_as_dict(index: int, mask: Mask) -> dict[str, Any]:
    """Return a mask's number, box (right and bottom exclusive; null if it is empty), score and COCO RLE."""
    return {"id": index, "box": mask.box_xyxy, "score": mask.score, "rle": rle.encode(mask.binary)}


def _tags(lira: Any) -> dict[int, str]:
    """Return the texts of the tokens that are no text of an answer."""
    tokens = lira.manifest.tokens
    ids = (tokens.seg, tokens.image_id, tokens.p, tokens.p_end, *tokens.eos)
    return {token: lira.tokenizer.decode([token]).strip() for token in ids}
