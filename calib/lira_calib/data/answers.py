"""Annotated answers in the form that LIRA is trained on, as text and as token ids."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lira_engine.bundle.manifest import TokenSpec
from lira_runtime.tokenizer import TextCoder

REFERRED = "[SEG]<image_id>"
"""The answer of referring segmentation, which ends at `<image_id>`."""
_IMAGE_ID = "<image_id>"
_TAGS = re.compile(r"\s*\[SEG\]|<image_id>|</?p>")
_BETWEEN = ", "


def grounded_answer(
    caption: object, phrases: Sequence[str], spans: Sequence[object] = ()
) -> tuple[str, list[int]]:
    """Return a caption with `[SEG]<image_id> <p> phrase </p> [SEG]` for its phrases, and their numbers in the
    order of the answer.

    A phrase's place is its span (start and end in characters), or where the caption first names it beside
    the others. Phrases that the caption does not name, or that overlap one before, are left out of it. The
    answer lists the phrases where there is no caption, or one that names none. Source: LIRA's supplementary
    text, and groundingLMM's training data.
    """
    text = caption if isinstance(caption, str) else ""
    if _TAGS.search(text):
        text, spans = _TAGS.sub("", text), ()
    placed: list[tuple[int, int, int]] = []  # start, end, number
    for number in sorted(range(len(phrases)), key=lambda n: _span(spans, n, text) or (len(text), 0)):
        place = _span(spans, number, text) or _found(text, phrases[number], placed)
        if place is not None and all(place[1] <= start or end <= place[0] for start, end, _ in placed):
            placed.append((*place, number))
    placed.sort()
    if not placed:
        return _BETWEEN.join(map(_coupled, phrases)) + ".", list(range(len(phrases)))
    parts, end = [], 0
    for start, stop, _ in placed:
        parts += [text[end:start], _coupled(text[start:stop])]
        end = stop
    return "".join([*parts, text[end:]]), [number for *_, number in placed]


def plain_caption(caption: str) -> str:
    """Return a caption without LIRA's tags."""
    return _TAGS.sub("", caption).strip()


def answer_tokens(
    answer: str, tokens: TokenSpec, tokenizer: TextCoder, stop_ids: frozenset[int]
) -> tuple[int, ...]:
    """Return the ids that the language model has to choose for an answer, its stop token last.

    What follows a region up to " <p>" comes with the region: it is appended, not chosen. The parts on both
    sides of a region are tokenized apart, as the runtime does.
    """
    first, *later = answer.split(_IMAGE_ID)
    ids = tokenizer.encode(first)
    for part in later:
        ids += [tokens.image_id, *_after_suffix(tokenizer.encode(part), tokens)]
    if not ids or ids[-1] not in stop_ids:
        ids.append(tokens.eos[0])
    return tuple(ids)


def _after_suffix(ids: Sequence[int], tokens: TokenSpec) -> Sequence[int]:
    """Return what follows " <p>"; a vocabulary may spell the blank before the tag in another way here."""
    return ids[ids.index(tokens.p) + 1 :] if tokens.p in ids else ids


def _coupled(phrase: str) -> str:
    return f"{REFERRED} <p> {phrase.strip()} </p> [SEG]"


def _span(spans: Sequence[object], number: int, text: str) -> tuple[int, int] | None:
    """Return a phrase's annotated place, None if there is none or it is not in the text."""
    span = spans[number] if number < len(spans) else None
    if isinstance(span, (list, tuple)) and span and isinstance(span[0], (list, tuple)):
        span = span[0]
    if not isinstance(span, (list, tuple)) or len(span) != 2 or not all(type(end) is int for end in span):
        return None
    return (span[0], span[1]) if 0 <= span[0] < span[1] <= len(text) else None


def _found(text: str, phrase: str, placed: Sequence[tuple[int, int, int]]) -> tuple[int, int] | None:
    """Return the first place of the phrase, as whole words, that overlaps none of `placed`."""
    if not phrase.strip():
        return None
    pattern = rf"(?<!\w){re.escape(phrase.strip())}(?!\w)"
    for match in re.finditer(pattern, text, re.IGNORECASE):
        if all(match.end() <= start or end <= match.start() for start, end, _ in placed):
            return match.span()
    return None
