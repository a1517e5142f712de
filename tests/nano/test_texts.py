from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lira_nano import texts
from lira_nano.scenes import Scene, SceneObject, object_name, render_scene, scene_rng
from lira_nano.texts import Region, Seg


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return [render_scene(21, index, 96) for index in range(120)]


def scene_of(*objects: tuple[str, str | None, float, float]) -> Scene:
    mask = np.ones((4, 4), bool)
    items = tuple(
        SceneObject(category, color, mask, (0, 0, 4, 4), (x, y), 0.3) for category, color, x, y in objects
    )
    return Scene(0, 0, np.zeros((4, 4, 3), np.uint8), items, "gradient")


TRIO = scene_of(("star", "red", 0.2, 0.3), ("circle", "orange", 0.5, 0.75), ("dog", None, 0.8, 0.35))


def matching(scene: Scene, expression: str) -> list[int]:
    """Return the objects that `expression` describes, by an independent reading of its words."""
    objects = scene.objects
    if place := re.fullmatch(r"the object (?:on|at) the (\w+)", expression):
        axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[place[1]]
        values = [sign * item.center[axis] for item in objects]
        best = min(values)
        assert sign * 0.5 > best, "not in that half"
        return [i for i, value in enumerate(values) if value < best + texts.LOCATION_MARGIN]
    words = expression.removeprefix("the ").split()
    return [
        index
        for index, item in enumerate(objects)
        if all(word in (item.category, item.color) or (word == "shape" and item.color) for word in words)
    ]


def test_every_expression_fits_one_object(some: list[Scene]) -> None:
    kinds = Counter()
    for scene in some:
        found = texts.referring(scene)
        assert len({item.expression for item in found}) == len(found)
        for item in found:
            assert matching(scene, item.expression) == [item.object_index], item
            kinds[item.kind] += 1
    assert set(kinds) == set(texts.REFERRING_KINDS)


def test_ambiguous_expressions_are_left_out() -> None:
    scene = scene_of(("star", "red", 0.45, 0.5), ("star", "blue", 0.55, 0.5), ("circle", "red", 0.64, 0.5))
    expressions = [item.expression for item in texts.referring(scene)]
    assert expressions == ["the red star", "the blue star", "the blue shape", "the red circle", "the circle"]


def test_referring_answers_have_mask_region_and_phrase() -> None:
    item = texts.Referring("the red star", 0, "name")
    coupled = texts.referring_sample(item, ilvc=True)
    assert coupled.question == "Please segment the red star."
    assert coupled.answer == "[SEG]<image_id> <p> the red star </p> [SEG]."
    assert coupled.answer_parts == (Seg(0), Region(0), " <p> the red star </p> ", Seg(0), ".")
    plain = texts.referring_sample(item, ilvc=False)
    assert plain.question == "Please segment the red star at a glance."
    assert plain.answer_parts == (Seg(0), ".") and plain.answer == "[SEG]."


def test_grounded_answers_have_a_mask_per_phrase() -> None:
    coupled, plain = texts.gcg_sample(TRIO, ilvc=True), texts.gcg_sample(TRIO, ilvc=False)
    assert coupled.answer == (
        "[SEG]<image_id> <p> a red star </p> [SEG], [SEG]<image_id> <p> an orange circle </p> [SEG]"
        " and [SEG]<image_id> <p> a dog </p> [SEG]."
    )
    assert plain.answer == (
        "<p> a red star </p> [SEG], <p> an orange circle </p> [SEG] and <p> a dog </p> [SEG]."
    )
    assert plain.question == coupled.question + " Do it at a glance."
    regions = [part.object_index for part in coupled.answer_parts if isinstance(part, Region)]
    assert regions == [0, 1, 2]
    assert [part.object_index for part in coupled.answer_parts if isinstance(part, Seg)] == [0, 0, 1, 1, 2, 2]
    assert [part.object_index for part in plain.answer_parts if isinstance(part, Seg)] == [0, 1, 2]


def test_captions_name_every_object() -> None:
    assert texts.caption_sample(TRIO).answer == "a red star, an orange circle and a dog."
    assert (
        texts.caption_sample(replace(TRIO, objects=TRIO.objects[1:])).answer == "an orange circle and a dog."
    )


def test_texts_are_never_split_in_two(some: list[Scene]) -> None:
    for scene in some[:30]:
        for sample in (
            texts.gcg_sample(scene, True),
            texts.gcg_sample(scene, False),
            texts.caption_sample(scene),
        ):
            kinds = [isinstance(part, str) for part in sample.answer_parts]
            assert not any(a and b for a, b in itertools.pairwise(kinds))


def truth(scene: Scene, question: str) -> bool:
    """Return the answer from the scene, by an independent reading of the question's words."""
    question = question.removesuffix(texts.YES_NO)
    names = [item.name for item in scene.objects]
    if found := re.fullmatch(r"Is there an? (.+) in the image\?", question):
        return found[1] in names
    if found := re.fullmatch(
        r"Is the (.+) (?:on|at) the (left|right|top|bottom)(?: side)? of the image\?", question
    ):
        [x_y] = [item.center for item in scene.objects if item.name == found[1]]
        value = x_y[0] if found[2] in ("left", "right") else x_y[1]
        assert not 0.4 <= value <= 0.6
        return value < 0.5 if found[2] in ("left", "top") else value > 0.5
    if found := re.fullmatch(r"Is the (\w+) shape an? (\w+)\?", question):
        [item] = [item for item in scene.objects if item.color == found[1]]
        return item.category == found[2]
    found = re.fullmatch(r"Is the (\w+) (\w+)\?", question)
    assert found, question
    [item] = [item for item in scene.objects if item.category == found[1]]
    return item.color == found[2]


def test_pairs_are_answered_yes_and_no(some: list[Scene]) -> None:
    kinds = Counter()
    for scene in some:
        for pair in texts.standard_pairs(scene):
            assert truth(scene, pair.yes) and not truth(scene, pair.no), pair
            yes, no = texts.vqa_samples(pair)
            assert (yes.question, yes.answer, no.question, no.answer) == (pair.yes, "Yes", pair.no, "No")
            kinds[pair.kind] += 1
    assert set(kinds) == set(texts.VQA_KINDS)


def test_the_kind_of_a_name_does_not_give_the_answer_away() -> None:
    scene = scene_of(("star", "red", 0.2, 0.3), ("circle", "blue", 0.5, 0.75), ("dog", None, 0.8, 0.35))
    near = {object_name("star", "blue"), object_name("circle", "red")}
    hits = total = 0
    for index in range(200):
        for pair in texts.vqa_pairs(scene, scene_rng(1, index, 2)):
            if pair.kind != "existence":
                continue
            asked = re.sub(r"Is there an? | in the image\?.*", "", pair.no)
            colored = " " in asked
            assert colored == any(color in pair.yes for color in ("red", "blue"))
            total += colored
            hits += asked in near
    assert 0.45 < hits / total < 0.7


def test_pairs_depend_on_the_generator_alone() -> None:
    scene = render_scene(3, 3, 64)
    assert texts.vqa_pairs(scene, scene_rng(3, 3, 5)) == texts.vqa_pairs(scene, scene_rng(3, 3, 5))
    assert texts.standard_pairs(scene) == texts.standard_pairs(render_scene(3, 3, 128))
