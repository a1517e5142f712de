"""Read VQA's pair of files: v2_OpenEnded_mscoco_SPLIT_questions.json, v2_mscoco_SPLIT_annotations.json.

VQA v1 and v2 and OK-VQA are published so. A question's image is named by its number and the file's
`data_subtype`. Test splits come without annotations: only the server of VQA's authors can score them.
Source: visualqa.org/download.html, "Input Questions Format" and "Annotation Format".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lira_bench.accuracy.files import Annotations, ById, need, need_text, short
from lira_bench.accuracy.items import LeftOut
from lira_engine.errors import LiraError

QUESTIONS, ANNOTATIONS = "questions.json", "annotations.json"
_KINDS = ("OpenEnded_", "MultipleChoice_")  # part of the questions' name, not of the annotations'
_NAMES = {
    "mscoco": "COCO_{split}_{number:012d}.jpg",
    "abstract_v002": "abstract_v002_{split}_{number:012d}.png",
}


def lines(files: Annotations, path: Path) -> Iterator[tuple[str, dict[str, Any] | LeftOut]]:
    """Yield the questions as lines of task vqa: question_id, image, question, answers.

    `path` is one of the two files. Raises LiraError if the other is missing.
    """
    questions_path = path if path.name.endswith(QUESTIONS) else _questions_of(path)
    annotations_path = questions_path.with_name(_annotations_of(questions_path.name))
    if not annotations_path.is_file():
        raise LiraError(
            f"{questions_path} has no {annotations_path.name} beside it, expected the answers (of a test "
            "split they are not published: only VQA's server can score it)"
        )
    questions = _list(files, questions_path, "questions")
    found = _list(files, annotations_path, "annotations")["annotations"]
    answers = ById(annotations_path.name, "answers to question", found, "question_id")
    for index, question in enumerate(questions["questions"]):
        key = f"{questions_path.name}.questions[{index}]"
        try:
            yield key, _line(question, questions, answers)
        except LiraError as error:
            yield key, LeftOut(key, str(error))


def _line(question: Any, header: Mapping[str, Any], answers: ById) -> dict[str, Any]:
    number = need(question, "question_id", (int, str))
    text, annotation = need_text(question, "question"), answers[number]
    if annotation.get("image_id") != question.get("image_id"):
        raise LiraError(
            f"question {short(number)} is about image {short(question.get('image_id'))}, "
            f"its answers are about {short(annotation.get('image_id'))}"
        )
    given = [need_text(answer, "answer") for answer in need(annotation, "answers", list)]
    image = _image(question, header)
    return {"question_id": number, "image": image, "question": text, "answers": given}


def _image(question: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    number = need(question, "image_id", (int, str))
    if isinstance(number, str):
        return number  # VizWiz in this form: the name itself
    kind = header.get("data_type", "mscoco")
    if not isinstance(kind, str) or kind not in _NAMES:
        raise LiraError(f"'data_type' of the file is {short(kind)}, expected {' or '.join(_NAMES)}")
    if not 0 <= number < 10**12:
        raise LiraError(f"key 'image_id' is {short(number)}, expected at most 12 digits")
    split = need_text(header, "data_subtype").replace("test-dev", "test")  # a part of the same images
    return _NAMES[kind].format(split=split, number=number)


def _list(files: Annotations, path: Path, key: str) -> dict[str, Any]:
    content: dict[str, Any] = files.json(path, dict)
    if not isinstance(content.get(key), list):
        raise LiraError(f"{path} has no list {key!r}, expected a file of VQA's form")
    return content


def _annotations_of(name: str) -> str:
    for kind in _KINDS:
        name = name.replace(kind, "")
    return name.removesuffix(QUESTIONS) + ANNOTATIONS


def _questions_of(annotations: Path) -> Path:
    listed = sorted(annotations.parent.glob(f"*{QUESTIONS}"))
    fitting = [path for path in listed if _annotations_of(path.name) == annotations.name]
    if len(fitting) != 1:
        names = ", ".join(path.name for path in fitting) or "none"
        raise LiraError(f"{annotations} needs its questions beside it, one file; found {names}")
    return fitting[0]
