"""An answer as JSON, as a picture, and as a line of timings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from PIL import Image

from lira_runtime import draw, fonts
from lira_runtime.answer import Answer, Phrase
from lira_runtime.timings import AUTHORS_TOKENS_PER_SECOND, Timings


def shown_phrases(answer: Answer) -> list[tuple[int, Phrase]]:
    """Return the phrases that have a mask, with the number of their colour (see `draw.color`)."""
    return list(enumerate(phrase for phrase in answer.phrases if phrase.mask is not None))


def overlay(image: Image.Image, answer: Answer, question: str = "") -> Image.Image:
    """Return the image with the masks on it, and the question, the answer and a legend below it."""
    spans = [
        draw.Span(phrase.start, phrase.end, partial(getattr, phrase.mask, "binary"), phrase.text)
        for _, phrase in shown_phrases(answer)
    ]
    return draw.overlay(image, answer.text, spans, question=question)


def missing_signs(answer: Answer, question: str = "") -> str | None:
    """Return a line about signs that `overlay` cannot draw for lack of fonts; None if it draws all."""
    labels = "".join(phrase.text for _, phrase in shown_phrases(answer))
    return fonts.missing(question + answer.text + labels)


def as_dict(answer: Answer) -> dict[str, Any]:
    """Return the answer for JSON.

    `phrases[i].mask` is an index into `masks`, or null. A mask's `rle` is COCO's run-length encoding; its
    `box_xyxy` (right and bottom exclusive) is null if it is empty. Times are seconds.
    """
    timings = answer.timings.as_dict()  # before this report decodes masks that nobody else needs
    return {
        "text": answer.text,
        "raw_text": answer.raw_text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "phrases": [
            {
                "text": phrase.text,
                "start": phrase.start,
                "end": phrase.end,
                "mask": None if phrase.mask is None else answer.masks.index(phrase.mask),
            }
            for phrase in answer.phrases
        ],
        "masks": [{"rle": mask.rle, "score": mask.score, "box_xyxy": mask.box_xyxy} for mask in answer.masks],
        "regions": [
            {"mask": region.mask_index, "box_xyxy": region.box_xyxy, "tokens_after": list(region.suffix_ids)}
            for region in answer.regions
        ],
        "timings": timings,
    }


def rate_line(timings: Timings) -> str:
    """Return the tokens per second, with the rate that the authors report."""
    rates = [f"end to end {timings.end_to_end_tokens_per_second:.1f} tok/s"]
    if timings.decode:
        rates.insert(0, f"decode {timings.decode_tokens_per_second:.1f} tok/s")
    if timings.drafted:
        rates.append(f"{timings.tokens_per_pass:.2f} tokens per pass")
    plural = "" if timings.new_tokens == 1 else "s"
    return (
        f"{timings.new_tokens} token{plural}: {', '.join(rates)}"
        f" (the authors report {AUTHORS_TOKENS_PER_SECOND} tok/s for LIRA-2B)"
    )


def stage_line(timings: Timings) -> str:
    """Return the time of each stage."""
    look = timings.look
    parts = []
    if look.total:
        parts += [f"semantic encoder {_ms(look.encode_semantic)}", f"pixel encoder {_ms(look.encode_pixel)}"]
        parts.append(f"SEFE {_ms(look.sefe)}")
    parts.append(f"prefill of {timings.prefill_tokens} tokens {_ms(timings.prefill)}")
    parts.append(f"first token after {_ms(timings.ttft)}")
    parts += _repeated("mask", timings.masks) + _repeated("region", timings.regions)
    parts.append(f"total {_ms(timings.total)}")
    return ", ".join(parts)


def _repeated(name: str, seconds: Sequence[float]) -> list[str]:
    plural = "" if len(seconds) == 1 else "s"
    return [f"{len(seconds)} {name}{plural} {_ms(sum(seconds))}"] if seconds else []


def _ms(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{1000 * seconds:.0f} ms"
