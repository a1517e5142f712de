"""Questions and answers about a scene: referring segmentation, grounded conversation (GCG), captions, yes/no.

All are texts about a `Scene`, without pixels or tokens. Answers are lists of parts, so that training knows
the object of each `[SEG]` and where the features of a region go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lira_nano.scenes import (
    COLORS,
    SHAPES,
    Scene,
    SceneObject,
    all_names,
    choose,
    object_name,
    scene_rng,
)
from lira_nano.sprites import sprite_names

# The system block and the user block of InternVL2 (no newline between them). The picture takes the place of
# <image>, so the two pieces around it are tokenized apart.
SYSTEM_PROMPT = "<|im_start|>system\nYou are LIRA.<|im_end|>"
USER_PROMPT = "<|im_start|>user\n<image>\n{question}<|im_end|><|im_start|>assistant\n"

# With and without interleaved local visual coupling (ILVC): the prompt decides, as in upstream.
REFSEG_QUESTION = "Please segment {expression}."
REFSEG_QUESTION_WITHOUT_ILVC = "Please segment {expression} at a glance."
GCG_QUESTION = (
    "Can you provide a thorough description of the this image? "
    "Please output with interleaved segmentation masks for the corresponding phrases."
)
GCG_QUESTION_WITHOUT_ILVC = GCG_QUESTION + " Do it at a glance."
CAPTION_QUESTION = "Provide a short description of this image."
YES_NO = " Please answer yes or no."

REFERRING_KINDS = ("name", "category", "color", "location")
VQA_KINDS = ("existence", "color", "category", "location")
LOCATIONS = ("left", "right", "top", "bottom")

_STANDARD_STREAM = 1  # of `scene_rng`

LOCATION_MARGIN = 0.12  # of the side, to the next object in that direction
SIDE_START = 0.4  # an object whose centre is beyond this (or 1 - this) is on that side


@dataclass(frozen=True)
class Seg:
    """A `[SEG]` token whose mask is that of object `object_index`."""

    object_index: int


@dataclass(frozen=True)
class Region:
    """An `<image_id>` token followed by the features of the crop of object `object_index`."""

    object_index: int


AnswerPart = str | Seg | Region


@dataclass(frozen=True)
class Sample:
    """One question with its answer. `task`: refseg, gcg, vqa or caption. `ilvc`: the answer has regions."""

    task: str
    kind: str
    ilvc: bool
    question: str
    answer_parts: tuple[AnswerPart, ...]

    @property
    def answer(self) -> str:
        return answer_text(self.answer_parts)


@dataclass(frozen=True)
class Referring:
    """An expression that fits exactly one object of its scene."""

    expression: str
    object_index: int
    kind: str


@dataclass(frozen=True)
class QuestionPair:
    """Two questions about the same thing (AttrEval): the answer to `yes` is Yes, to `no` is No."""

    kind: str
    yes: str
    no: str


@dataclass(frozen=True)
class AttributeQuestion:
    """AttrEval's referring segmentation: `answers` are those of `words` that are true of the object, whose
    `expression` names none of them."""

    expression: str
    object_index: int
    kind: str
    words: tuple[str, ...]
    answers: tuple[str, ...]


def answer_text(parts: Iterable[AnswerPart]) -> str:
    """Return the answer as text, `[SEG]<image_id> <p> a dog </p> [SEG].`, without region features."""
    names = {Seg: "[SEG]", Region: "<image_id>"}
    return "".join(part if isinstance(part, str) else names[type(part)] for part in parts)


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def referring(scene: Scene) -> list[Referring]:
    """Return all expressions that fit exactly one object, in a fixed order."""
    objects = scene.objects
    categories = Counter(item.category for item in objects)
    colors = Counter(item.color for item in objects)
    found = []
    for index, item in enumerate(objects):
        found.append(Referring(f"the {item.name}", index, "name"))
        if item.color is not None:
            if categories[item.category] == 1:
                found.append(Referring(f"the {item.category}", index, "category"))
            if colors[item.color] == 1:  # pictured objects have no colour word, so "shape" leaves them out
                found.append(Referring(f"the {item.color} shape", index, "color"))
    for where, axis, sign in (
        ("on the left", 0, 1),
        ("on the right", 0, -1),
        ("at the top", 1, 1),
        ("at the bottom", 1, -1),
    ):
        ordered = sorted(range(len(objects)), key=lambda i: sign * objects[i].center[axis])
        first, second = (objects[i].center[axis] for i in ordered[:2])
        if sign * (second - first) >= LOCATION_MARGIN and sign * (0.5 - first) > 0:
            found.append(Referring(f"the object {where}", ordered[0], "location"))
    return found


def attribute_questions(scene: Scene) -> list[AttributeQuestion]:
    """Return questions about each object: its colour and location if its category alone refers to it, its
    category if its colour alone does; of pictured objects the location."""
    categories = Counter(item.category for item in scene.objects)
    colors = Counter(item.color for item in scene.objects)
    found = []
    for index, item in enumerate(scene.objects):
        sides = _sides(item)
        if categories[item.category] == 1:
            expression = f"the {item.category}"
            if item.color is not None:
                found.append(AttributeQuestion(expression, index, "color", tuple(COLORS), (item.color,)))
            if sides:
                found.append(AttributeQuestion(expression, index, "location", LOCATIONS, sides))
        if item.color is not None and colors[item.color] == 1:
            expression = f"the {item.color} shape"
            found.append(AttributeQuestion(expression, index, "category", SHAPES, (item.category,)))
    return found


def _sides(item: SceneObject) -> tuple[str, ...]:
    """Return the words of LOCATIONS that are true of the object."""
    x, y = item.center
    limits = (("left", x), ("right", 1 - x), ("top", y), ("bottom", 1 - y))
    return tuple(word for word, distance in limits if distance < SIDE_START)


def referring_sample(item: Referring, ilvc: bool) -> Sample:
    """Return the sample of an expression. The answer is the mask, with ILVC also the region and phrase."""
    if not ilvc:
        question = REFSEG_QUESTION_WITHOUT_ILVC.format(expression=item.expression)
        return Sample("refseg", item.kind, False, question, (Seg(item.object_index), "."))
    question = REFSEG_QUESTION.format(expression=item.expression)
    phrase = _coupled_phrase(item.expression, item.object_index)
    return Sample("refseg", item.kind, True, question, (*phrase, "."))


def gcg_sample(scene: Scene, ilvc: bool, order: Sequence[int] | None = None) -> Sample:
    """Return a caption of all objects as phrases with masks, in `order` (indices), or from left to right.

    With ILVC a phrase is `[SEG]<image_id> <p> a dog </p> [SEG]`, without it ` <p> a dog </p> [SEG]`, at the
    start of the answer without the space. Both `[SEG]` of a phrase mean the same object.
    """
    phrases: list[tuple[AnswerPart, ...]] = []
    for index in range(len(scene.objects)) if order is None else order:
        text = with_article(scene.objects[index].name)
        phrases.append(_coupled_phrase(text, index) if ilvc else (f"<p> {text} </p> ", Seg(index)))
    question = GCG_QUESTION if ilvc else GCG_QUESTION_WITHOUT_ILVC
    return Sample("gcg", "gcg", ilvc, question, _merge_text((*_join_phrases(phrases), ".")))


def caption_sample(scene: Scene, order: Sequence[int] | None = None) -> Sample:
    """`a red star, a dog and a blue circle.`: the phrases of the grounded answer without masks."""
    objects = scene.objects if order is None else [scene.objects[index] for index in order]
    parts = _join_phrases([(with_article(item.name),) for item in objects])
    return Sample("caption", "caption", False, CAPTION_QUESTION, _merge_text((*parts, ".")))


def caption_phrases(caption: str) -> list[str]:
    """What a caption names, sorted: the order of objects is the model's choice."""
    return sorted(
        phrase for part in caption.strip().rstrip(".").split(", ") for phrase in part.split(" and ")
    )


def vqa_samples(pair: QuestionPair) -> tuple[Sample, Sample]:
    """The yes and the no question of a pair."""
    yes, no = (
        Sample("vqa", pair.kind, False, question, (answer,))
        for question, answer in ((pair.yes, "Yes"), (pair.no, "No"))
    )
    return yes, no


def standard_pairs(scene: Scene) -> list[QuestionPair]:
    """The pairs about a scene that `scenes` writes and `evaluate` asks: the same on every machine."""
    return vqa_pairs(scene, scene_rng(scene.seed, scene.index, _STANDARD_STREAM))


def vqa_pairs(scene: Scene, rng: np.random.Generator) -> list[QuestionPair]:
    """All pairs that the scene allows, one distractor each, drawn with `rng` from what could plausibly be
    there.
    """
    pairs = []
    categories = Counter(item.category for item in scene.objects)
    colors = Counter(item.color for item in scene.objects)
    for item in scene.objects:
        absent = _absent_name(scene, item, rng)
        pairs.append(_pair("existence", "Is there {} in the image?", *map(with_article, (item.name, absent))))
        if item.color is not None and categories[item.category] == 1:
            others = [other.color for other in scene.objects if other.color not in (None, item.color)]
            wrong = _distractor(others, [color for color in COLORS if color != item.color], rng)
            pairs.append(_pair("color", f"Is the {item.category} {{}}?", item.color, wrong))
        if item.color is not None and colors[item.color] == 1:
            others = [
                other.category for other in scene.objects if other.color and other.category != item.category
            ]
            wrong = _distractor(others, [shape for shape in SHAPES if shape != item.category], rng)
            question = f"Is the {item.color} shape {{}}?"
            pairs.append(_pair("category", question, with_article(item.category), with_article(wrong)))
        x, y = item.center
        for value, first, second in (
            (x, "on the left side", "on the right side"),
            (y, "at the top", "at the bottom"),
        ):
            if SIDE_START <= value <= 1 - SIDE_START:
                continue
            right, wrong = (first, second) if value < SIDE_START else (second, first)
            pairs.append(_pair("location", f"Is the {item.name} {{}} of the image?", right, wrong))
    return pairs


def _pair(kind: str, template: str, right: str, wrong: str) -> QuestionPair:
    return QuestionPair(kind, template.format(right) + YES_NO, template.format(wrong) + YES_NO)


def _distractor(in_scene: Sequence[str], others: Sequence[str], rng: np.random.Generator) -> str:
    """Return, half of the time, an attribute of another object of the scene (hard), else any one."""
    return choose(rng, in_scene if in_scene and rng.random() < 0.5 else others)


def _absent_name(scene: Scene, item: SceneObject, rng: np.random.Generator) -> str:
    """Return a name that no object has, half of the time a near miss: a wrong pair of a colour and a shape
    of the scene.

    Both halves of a pair ask equally often about shapes and pictured objects, so that the kind of a name does
    not tell the answer.
    """
    present = {other.name for other in scene.objects}
    if item.color is None:
        return choose(rng, [name for name in sprite_names() if name not in present])
    if rng.random() < 0.5:
        shapes = [other for other in scene.objects if other.color is not None]
        mixed = {object_name(a.category, b.color) for a in shapes for b in shapes}
        near = {object_name(shape, item.color) for shape in SHAPES}
        near |= {object_name(item.category, color) for color in COLORS}
        options = sorted(mixed - present) or sorted(near - present)
        return choose(rng, options)
    pictured = set(sprite_names())
    return choose(rng, [name for name in all_names() if name not in present and name not in pictured])


def _coupled_phrase(text: str, index: int) -> tuple[AnswerPart, ...]:
    return (Seg(index), Region(index), f" <p> {text} </p> ", Seg(index))


def _join_phrases(phrases: Sequence[tuple[AnswerPart, ...]]) -> list[AnswerPart]:
    """Join phrases as `A, B and C`."""
    parts: list[AnswerPart] = []
    for position, phrase in enumerate(phrases):
        if position:
            parts.append(" and " if position == len(phrases) - 1 else ", ")
        parts.extend(phrase)
    return parts


def _merge_text(parts: Iterable[AnswerPart]) -> tuple[AnswerPart, ...]:
    """Join neighbouring texts: tokenized apart they would give other tokens than the runtime's."""
    merged: list[AnswerPart] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return tuple(merged)
