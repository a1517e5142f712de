"""One story end to end: the shipped miniature, from its checkpoint to text, masks and files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lira_bench.metrics import iou
from lira_engine.build import build
from lira_nano import evaluate
from lira_nano.scenes import Scene, render_scene
from lira_runtime import Lira
from lira_runtime.rle import decode

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "assets" / "sample.png"
# The sample image is this scene, rendered at this size; training draws from another stream.
SAMPLE_SCENE = (7, 24, 640)
GCG = "an orange star, a house, a yellow circle and a fish."


@pytest.fixture(scope="module")
def bundle(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = shutil.copytree(nano_bundle, tmp_path_factory.mktemp("nano") / "bundle")
    build(out, target="cpu")
    return out


@pytest.fixture(scope="module")
def lira(bundle: Path) -> Iterator[Lira]:
    with Lira.open(bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render_scene(*SAMPLE_SCENE)


def truth(scene: Scene, phrase: str) -> np.ndarray:
    return next(item.mask for item in scene.objects if phrase.endswith(item.name))


def test_sample_image_is_the_scene(scene: Scene) -> None:
    assert np.array_equal(np.asarray(Image.open(SAMPLE)), scene.image)


def test_grounded_answer_names_and_masks_every_object(lira: Lira, scene: Scene) -> None:
    answer = lira.look(SAMPLE).ask(task="gcg")
    assert answer.text == GCG
    assert answer.finish_reason == "stop"
    assert len(answer.regions) == len(scene.objects)
    for phrase in answer.phrases:
        assert phrase.mask is not None
        assert iou(phrase.mask.binary, truth(scene, phrase.text)) > 0.8, phrase.text
        assert answer.text[phrase.start : phrase.end] == phrase.text


def test_one_look_answers_many_questions(lira: Lira, scene: Scene) -> None:
    look = lira.look(SAMPLE)
    first = look.ask(task="vqa", expression="Is there a fish in the image? Please answer yes or no.")
    second = look.ask(task="vqa", expression="Is there a penguin in the image? Please answer yes or no.")
    assert (first.text, second.text) == ("Yes", "No")
    assert not first.masks and not second.masks
    assert second.timings.look.total == 0
    assert second.timings.prefill_tokens < first.timings.prefill_tokens
    for ilvc in ("on", "off"):
        answer = look.ask(task="refseg", expression="the orange star", ilvc=ilvc)
        assert iou(answer.masks[0].binary, truth(scene, "orange star")) > 0.8


@pytest.mark.portable
def test_built_engines_choose_the_same_tokens_as_the_portable_graphs(bundle: Path, lira: Lira) -> None:
    with Lira.open(bundle, target="portable", threads=1) as portable:
        for task in ("gcg", "caption"):
            expected = portable.look(SAMPLE).ask(task=task)
            found = lira.look(SAMPLE).ask(task=task)
            assert found.token_ids == expected.token_ids
            for mask, wanted in zip(found.masks, expected.masks, strict=True):
                assert iou(mask.binary, wanted.binary) > 0.99


def test_command_line_writes_a_picture_and_coco_masks(bundle: Path, scene: Scene, tmp_path: Path) -> None:
    picture, report = tmp_path / "out.png", tmp_path / "out.json"
    command = [sys.executable, "-c", "from lira_engine.main import main; main()", "run", str(bundle)]
    command += ["--image", str(SAMPLE), "--task", "gcg", "--overlay", str(picture), "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert GCG in done.stdout
    assert "21.6" in done.stdout
    assert Image.open(picture).width >= SAMPLE_SCENE[2]
    data = json.loads(report.read_text())
    assert data["text"] == GCG
    for phrase in data["phrases"]:
        mask = decode(data["masks"][phrase["mask"]]["rle"])
        assert iou(mask, truth(scene, phrase["text"])) > 0.8


def test_evaluation_on_unseen_scenes(lira: Lira) -> None:
    scores = evaluate.Scores()
    for index in range(4):
        evaluate.evaluate_scene(lira, render_scene(5, index), scores)
    report = evaluate.summary(scores)
    # Four scenes tell a broken pipeline from a working one; the README's 300 tell how good it is.
    assert report["gcg"]["off"]["mask_recall"] > 0.5
    assert report["refseg"]["on"]["all"]["giou"] > 0.4
    assert report["segs_in_vqa"] == 0
    assert "| RefSeg cIoU, all kinds" in evaluate.markdown(report)
