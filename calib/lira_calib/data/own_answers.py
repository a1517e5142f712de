"""The model's own answers, where pictures come without annotations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lira_calib.data.items import Data, Item, Progress, no_progress
from lira_calib.data.journal import Journal
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import MANIFEST_NAME
from lira_engine.engines.usable import usable_build
from lira_engine.engines.verified import require_verified
from lira_engine.errors import LiraError
from lira_engine.targets import PORTABLE, TARGETS
from lira_runtime import Answer, Lira, Scene
from lira_runtime.images import open_image

ANSWERS = "answers.jsonl"
UNNAMED = "the object"
"""What referring segmentation is asked for if the grounded answer names nothing."""
_PORTABLE_LARGEST = 1 << 30
"""Bytes of portable graphs that may be opened as they are: they grow to about three times that."""
_PREFERRED = ("fp32", "fp16", "int8", "int4")


def answered(
    bundle: Bundle,
    data: Data,
    work: Path,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Data:
    """Return the data with the answers that the model gives itself, kept in `work` as they come.

    Takes cpu fp32 engines, else the portable graphs if they are small, else the most precise engines that are
    built. Raises LiraError with the command if there are none.
    """
    target, precision = engines_for_answers(bundle)
    items = [*data.calibration, *data.held_out]
    with Journal(work / ANSWERS) as journal:
        known = {record["of"]: record for record in journal.records()}
        engines = [sha256_of(bundle.path / MANIFEST_NAME), target, precision]
        keys = [_key(data.images, item, engines) for item in items]
        if any(key not in known for key in keys):
            with Lira.open(bundle.path, target, precision, threads) as lira:
                scene, latest = None, ""
                for number, (key, item) in enumerate(zip(keys, items, strict=True)):
                    progress(number, len(items))
                    if key in known:
                        continue
                    if scene is None or latest != item.image:
                        latest = item.image
                        scene = lira.look(open_image(data.images / item.image))
                    known[key] = {"of": key, **own_answer(scene, item.task, item.text)}
                    journal.append(known[key])
    done = [_with_answer(item, known[key]) for key, item in zip(keys, items, strict=True)]
    cut = len(data.calibration)
    return replace(data, calibration=done[:cut], held_out=done[cut:])


def engines_for_answers(bundle: Bundle) -> tuple[str, str]:
    """Return target and precision of the engines that answer. Raises LiraError with the command if there are
    none."""
    choices = [("cpu", "fp32"), (PORTABLE.name, PORTABLE.precisions[0])]
    choices += [(t, p) for p in _PREFERRED for t, target in TARGETS.items() if p in target.precisions]
    for target, precision in choices:
        if target == PORTABLE.name:
            sources = {name for stage in bundle.manifest.stages for name in bundle.stage_sources(stage)}
            if sum(bundle.manifest.files[name].bytes for name in sources) <= _PORTABLE_LARGEST:
                return target, precision
            continue
        try:
            build = usable_build(bundle, TARGETS[target], precision, "sizes")
            require_verified(build, TARGETS[target], bundle.path)
        except LiraError:
            continue
        return target, precision
    raise LiraError(
        f"{bundle.path} has no engines that could answer, and without --questions the answers are the "
        f"model's own: run `{TARGETS['cpu'].build_command(bundle.path, 'int8')}`, or give "
        "annotations, --questions FILE"
    )


def own_answer(scene: Scene, task: str, text: str | None) -> dict[str, Any]:
    """Ask for a task and return the answer: "text" of the question, which of a referring segmentation without
    one is what the grounded answer names first; "tokens"; "masks" in COCO's run-length encoding."""
    if task == "refseg" and text is None:
        phrases = [phrase.text for phrase in scene.ask(task="gcg").phrases if phrase.text.strip()]
        text = phrases[0] if phrases else UNNAMED
    answer: Answer = scene.ask(task=task, expression=text)
    masks: Sequence[dict[str, Any]] = [mask.rle for mask in answer.masks]
    return {"text": text, "tokens": list(answer.token_ids), "masks": masks}


def _with_answer(item: Item, record: dict[str, Any]) -> Item:
    masks = tuple((mask,) for mask in record["masks"])
    return replace(item, text=record["text"], tokens=tuple(record["tokens"]), masks=masks)


def _key(images: Path, item: Item, engines: Sequence[str]) -> str:
    content = json.dumps([item.key, item.task, item.text, sha256_of(images / item.image), *engines])
    return hashlib.sha256(content.encode()).hexdigest()
