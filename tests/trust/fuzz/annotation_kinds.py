"""Annotations of each form that `eval` and `calibrate` read, and results that others submit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.kind import Form, Kind, folder_with
from PIL import Image

from lira_bench.accuracy.items import Item, Source
from lira_bench.accuracy.tasks import TASKS
from lira_bench.accuracy.worker import true_masks
from lira_bench.results.submitted import read_submitted
from lira_calib.data.annotations import items_of
from lira_engine.errors import LiraError
from lira_runtime import rle

HEIGHT, WIDTH = 12, 10
_CALIBRATED = ("refseg", "gcg", "vqa", "pope", "attreval")
_POLYGON = [[3, 2, 9, 2, 9, 7, 3, 7]]
_RUNS = {"size": [HEIGHT, WIDTH], "counts": [38, 5, 7, 5, 7, 5, 7, 5, 7, 5, 7, 5, 17]}
_SIZE = {"height": HEIGHT, "width": WIDTH}


def _read(task: str, folder: Path) -> None:
    """Read a folder as `eval` does, decode the masks of what was found, and read it as `calibrate` does."""
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    picture.save(folder / "a.png")
    refused = []
    for item in TASKS[task].read(Source(folder)).entries:
        if isinstance(item, Item):
            try:
                true_masks(item, picture, folder / "a.png")
            except LiraError as error:
                refused.append(error)
    if task in _CALIBRATED:
        _calibrated(folder)
    if refused:
        raise refused[0]


def _calibrated(data: Path) -> None:
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    for one in items_of(data).items:
        one.true_masks(picture, data / "a.png")


def _harness(task: str, file: str, **beside: object) -> Callable[[bytes], None]:
    """Return the function that reads `file` of a task; `beside`: further files, as folder_with takes them."""

    def read(data: bytes) -> None:
        others = {name: json.dumps(content).encode() for name, content in beside.items()}
        with folder_with(**others) as folder:
            (folder / file).write_bytes(data)
            _read(task, folder)

    return read


def unnamed(data: bytes) -> None:
    """Annotations whose file has no published name: `calibrate` looks at what is in it."""
    with folder_with(x_json=data, instances_json=_json(_INSTANCES)) as folder:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
        _calibrated(folder / "x.json")


def submitted(data: bytes) -> None:
    """A file of `bench --all --submit` that somebody sent."""
    with folder_with(x_json=data) as folder:
        read_submitted(folder / "x.json")


def _mask() -> dict[str, Any]:
    return rle.encode(np.eye(HEIGHT, WIDTH, dtype=bool))


_REFS = [
    {"ref_id": 1, "ann_id": 71, "image_id": 5, "split": "val", "category_id": 1,
    "sentences": [{"sent": "Left", "raw": "l"}]},
    {"ref_id": 2, "ann_id": [72, 73], "image_id": 5, "split": "val", "sentences": [{"sent": "both"},
    {"sent": "it"}]},
    {"ref_id": 3, "ann_id": [-1], "image_id": 5, "split": "val", "sentences": [{"sent": "none"}]},
]  # fmt: skip
_INSTANCES = {
    "images": [{"id": 5, "file_name": "a.png", **_SIZE}],
    "annotations": [
        {"id": 71, "image_id": 5, "category_id": 1, "segmentation": _POLYGON},
        {"id": 72, "image_id": 5, "category_id": 1, "segmentation": _RUNS},
        {"id": 73, "image_id": 5, "category_id": 1, "segmentation": _mask()},
    ],
    "categories": [{"id": 1, "name": "star"}],
}  # fmt: skip
_GRANDF = [
    {
        "file_name": "a.png", "image_id": "5", "caption": "A star on grass.", **_SIZE,
        "groundings": {
            "star": {"token_positives": [2, 6], "rle_masks": [_mask()]},
            "grass": {"token_positives": [10, 15], "rle_masks": [_RUNS, _mask()]},
        },
    }
]  # fmt: skip
_REFCOCOG = [
    {
        "7": {
            "img_file_name": "a.png", "caption": "A star on grass.", **_SIZE,
            "refs": [{"sentence": "a star", "segmentation": _POLYGON}, {"sentence": "grass",
            "segmentation": _RUNS}],
        }
    }
]  # fmt: skip
_FLICKR = {
    "images": [{"id": 5, "file_name": "a.png", "caption": "A star on grass.", **_SIZE}],
    "annotations": [
        {"id": 1, "image_id": 5, "bbox": [1, 1, 5, 5], "area": 25, "tokens_positive": [[2, 6]],
        "sam_mask": _mask()}
    ],
}  # fmt: skip
_CAPTIONS = {
    "images": [{"id": "5"}],
    "annotations": [{"image_id": "5", "caption": "A star.", "labels": ["star"]}],
}
_MASKS = {"annotations": [{"id": 1, "image_id": "5", "segmentation": _mask()}]}
_VQA = [
    {"question_id": 1, "image": "a.png", "question": "What?", "answer": "a star"},
    {"question_id": 2, "image": "a.png", "question": "Which?", "answers": ["red", "red", "blue"]},
]
_QUESTIONS = {
    "data_type": "mscoco", "data_subtype": "val2014",
    "questions": [{"question_id": 1, "image_id": 5, "question": "What?"}],
}  # fmt: skip
_ANSWERS = {
    "annotations": [{"question_id": 1, "image_id": 5, "answers": [{"answer": "a star", "answer_id": 1}]}]
}
_POPE = [
    {"question_id": 1, "image": "a.png", "text": "Is there a star?", "label": "yes", "category": "random"},
    {"question_id": 2, "image": "a.png", "text": "Is there a fish?", "label": "no"},
]
_ATTREVAL = [
    {"pair_id": 1, "image": "a.png", "question": "Is it red?", "answer": "yes", "kind": "colour"},
    {"pair_id": 1, "image": "a.png", "question": "Is it blue?", "answer": "no", "kind": "colour"},
    {"image": "a.png", "expression": "the star", "words": ["red", "blue"], "answer": "red"},
]
_CHAIR = [{"question_id": 5, "image": "a.png"}]
_COCO_CAPTIONS = {"annotations": [{"id": 1, "image_id": 5, "caption": "A star and a fish."}]}


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


def _of_lines(entries: Sequence[object]) -> bytes:
    return b"".join(_json(entry) + b"\n" for entry in entries)


@cache
def _result() -> bytes:
    files = sorted((Path(__file__).parents[3] / "docs" / "results").glob("*.json"))
    return files[0].read_bytes()


_V2 = "v2_mscoco_val2014_annotations.json"
_V2_QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"


def _kind(name: str, task: str, file: str, seed: object, form: Form = "json", **beside: object) -> Kind:
    data = _of_lines(seed) if form == "lines" and isinstance(seed, list) else _json(seed)
    return Kind(name, _harness(task, file, **beside), lambda: [data], form)


KINDS = (
    _kind("refs", "refseg", "refs.json", _REFS, instances_json=_INSTANCES),
    _kind("instances", "refseg", "instances.json", _INSTANCES, refs_json=_REFS),
    _kind("grandf", "gcg", "gcg.json", _GRANDF),
    _kind("refcocog", "gcg", "gcg.json", _REFCOCOG),
    _kind("flickr", "gcg", "gcg.json", _FLICKR),
    _kind(
        "coco_captions", "gcg", "val_gcg_coco_caption_gt.json", _CAPTIONS, val_gcg_coco_mask_gt_json=_MASKS
    ),
    _kind("coco_masks", "gcg", "val_gcg_coco_mask_gt.json", _MASKS, val_gcg_coco_caption_gt_json=_CAPTIONS),
    _kind("vqa", "vqa", "vqa.jsonl", _VQA, "lines"),
    _kind("vqa_questions", "vqa", _V2_QUESTIONS, _QUESTIONS, v2_mscoco_val2014_annotations_json=_ANSWERS),
    _kind("vqa_answers", "vqa", _V2, _ANSWERS, v2_OpenEnded_mscoco_val2014_questions_json=_QUESTIONS),
    _kind("pope", "pope", "pope.jsonl", _POPE, "lines"),
    _kind("attreval", "attreval", "attreval.jsonl", _ATTREVAL, "lines"),
    _kind("chair_instances", "chair", "instances.json", _INSTANCES, captions_json=_COCO_CAPTIONS),
    _kind("chair_captions", "chair", "captions.json", _COCO_CAPTIONS, instances_json=_INSTANCES),
    _kind("chair", "chair", "chair.jsonl", _CHAIR, "lines", instances_json=_INSTANCES),
    Kind(
        "unnamed",
        unnamed,
        lambda: [*map(_json, (_REFS, _GRANDF, _REFCOCOG, _FLICKR)), *map(_of_lines, (_VQA, _POPE))],
        "json",
    ),
    Kind("submitted", submitted, lambda: [_result()], "json"),
)
