"""Write scenes in the formats that `lira-edge eval` reads: RefCOCO, GranD-f, VQA, AttrEval and POPE."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from pycocotools import mask as coco_mask
from rich.progress import track

from lira_engine.system.atomic import atomic_directory
from lira_engine.system.terminal import plain_console
from lira_nano.scenes import SHAPES, Scene, SceneObject, render_scene
from lira_nano.sprites import sprite_names
from lira_nano.texts import (
    attribute_questions,
    caption_sample,
    referring,
    standard_pairs,
    with_article,
)

CATEGORIES = (*sprite_names(), *SHAPES)
SPLIT = "test"


def command(
    seed: Annotated[int, typer.Option(min=0, help="Stream of scenes; training uses its own.")],
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="New folder to write.")],
    size: Annotated[int, typer.Option(min=64, max=2048, help="Side of the pictures in pixels.")] = 384,
) -> None:
    """Write scenes with masks, referring expressions, grounded captions and question pairs."""
    write_dataset(output, seed, count, size)


def write_dataset(folder: Path, seed: int, count: int, size: int = 384) -> None:
    """Write scenes 0 to `count` - 1 of stream `seed`, the whole folder or nothing.

    The files: images/NNNNNN.png; instances.json (COCO: annotations with RLE masks); refs.json (RefCOCO's
    refs, one per object and kind of expression); gcg.json (GranD-f's training form: caption, and per phrase
    its character span and RLE masks); vqa.jsonl (a question per line, two lines per `pair_id`, as in
    AttrEval); attributes.jsonl (AttrEval's expressions with candidate words); pope.jsonl (is there ...?).
    Raises LiraError if `folder` is not empty.
    """
    index = _Index()
    with atomic_directory(folder) as partial:
        (partial / "images").mkdir()
        for number in track(range(count), "scenes", console=plain_console(stderr=True), transient=True):
            scene = render_scene(seed, number, size)
            name = f"{number:06d}.png"
            Image.fromarray(scene.image).save(partial / "images" / name)
            index.add(scene, name)
        _write_json(partial / "instances.json", index.instances(seed))
        _write_json(partial / "refs.json", index.refs)
        _write_json(partial / "gcg.json", index.grounded)
        _write_lines(partial / "vqa.jsonl", index.questions)
        _write_lines(partial / "attributes.jsonl", index.attributes)
        _write_lines(partial / "pope.jsonl", index.existence)


@dataclass
class _Index:
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    refs: list[dict[str, Any]] = field(default_factory=list)
    grounded: list[dict[str, Any]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    attributes: list[dict[str, Any]] = field(default_factory=list)
    existence: list[dict[str, Any]] = field(default_factory=list)
    sentences: int = 0

    def add(self, scene: Scene, file_name: str) -> None:
        image = {"image_id": scene.index, "file_name": file_name}
        height, width = scene.image.shape[:2]
        self.images.append(
            {"id": scene.index, "file_name": file_name, "width": width, "height": height}
            | {"background": scene.background}
        )
        first = len(self.annotations) + 1  # COCO's evaluation takes id 0 for "no match"
        self.annotations += [
            {"id": first + i, "image_id": scene.index} | _annotation(item)
            for i, item in enumerate(scene.objects)
        ]
        annotations = self.annotations[first - 1 :]
        self._add_refs(scene, annotations, image)
        self._add_grounded(scene, annotations, image)
        self._add_questions(scene, file_name)

    def _add_refs(self, scene: Scene, annotations: list[dict[str, Any]], image: dict[str, Any]) -> None:
        refs: dict[tuple[int, str], dict[str, Any]] = {}
        for item in referring(scene):
            annotation = annotations[item.object_index]
            ref = refs.setdefault(
                (item.object_index, item.kind),
                {
                    "ref_id": len(self.refs) + len(refs),
                    "ann_id": annotation["id"],
                    **image,
                    "category_id": annotation["category_id"],
                    "split": SPLIT,
                    "kind": item.kind,
                    "sent_ids": [],
                    "sentences": [],
                },
            )
            text = item.expression
            ref["sent_ids"].append(self.sentences)
            ref["sentences"].append(
                {"sent": text, "raw": text, "sent_id": self.sentences, "tokens": text.split()}
            )
            self.sentences += 1
        self.refs += refs.values()

    def _add_grounded(self, scene: Scene, annotations: list[dict[str, Any]], image: dict[str, Any]) -> None:
        caption = caption_sample(scene).answer
        groundings = {}  # by phrase: no two objects of a scene have the same name
        end = 0
        for item, annotation in zip(scene.objects, annotations, strict=True):
            phrase = with_article(item.name)
            start = caption.index(phrase, end)
            end = start + len(phrase)
            groundings[phrase] = {"token_positives": [start, end], "rle_masks": [annotation["segmentation"]]}
        height, width = scene.image.shape[:2]
        self.grounded.append(
            {**image, "height": height, "width": width, "caption": caption, "groundings": groundings}
        )

    def _add_questions(self, scene: Scene, file_name: str) -> None:
        first = len(self.questions) // 2
        for pair_id, pair in enumerate(standard_pairs(scene), first):
            for question, answer in ((pair.yes, "Yes"), (pair.no, "No")):
                numbered = {"question_id": len(self.questions), "image": file_name}
                self.questions.append(
                    {
                        **numbered,
                        "pair_id": pair_id,
                        "question": question,
                        "answer": answer,
                        "kind": pair.kind,
                    }
                )
                if pair.kind == "existence":
                    numbered["question_id"] = len(self.existence)
                    self.existence.append({**numbered, "text": question, "label": answer.lower()})
        for asked in attribute_questions(scene):
            self.attributes.append(
                {
                    "question_id": len(self.attributes),
                    "image": file_name,
                    "expression": asked.expression,
                    "kind": asked.kind,
                    "words": asked.words,
                    "answer": asked.answers,
                }
            )

    def instances(self, seed: int) -> dict[str, Any]:
        categories = [
            {"id": i, "name": name, "supercategory": "shape" if name in SHAPES else "picture"}
            for i, name in enumerate(CATEGORIES, 1)
        ]
        return {
            "info": {"description": "lira-nano scenes", "seed": seed},
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }


def _annotation(item: SceneObject) -> dict[str, Any]:
    left, top, right, bottom = item.box_xyxy
    rle = coco_mask.encode(np.asfortranarray(item.mask, dtype=np.uint8))
    return {
        "category_id": CATEGORIES.index(item.category) + 1,
        "name": item.name,
        "color": item.color,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(item.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
