"""Pictures with an EXIF orientation: annotations are of the stored pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lira_bench.accuracy.items import Item, Question
from lira_bench.accuracy.worker import true_masks
from lira_engine.errors import LiraError, OutOfMemory
from lira_runtime import rle
from lira_runtime.images import open_image

if TYPE_CHECKING:
    from .conftest import Evaluate

HEIGHT, WIDTH = 12, 20
ROTATED = 6  # a quarter turn: the camera was held upright
POLYGON = [[1, 1, 9, 1, 9, 9, 1, 9]]
LOW = [[1, 1, 9, 1, 9, 18, 1, 18]]  # reaches out of 20 x 12, and not out of 12 x 20
FAR = [[-9, 1, 9, 1, 9, 30, -9, 30]]


def tagged(path: Path, picture: Image.Image, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    values = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint32) % 251
    picture = Image.fromarray(values.astype(np.uint8).reshape(HEIGHT, WIDTH, 3))
    return tagged(tmp_path / "photo.png", picture, ROTATED)


def item(*masks: Any, size: tuple[int, int] | None = None) -> Item:
    return Item("a[0]", "photo.png", (Question("gcg"),), {}, masks, size)


def test_a_picture_opened_as_stored_is_not_turned_later(photo: Path) -> None:
    stored = open_image(photo, upright=False)
    assert stored.size == (WIDTH, HEIGHT) and open_image(photo).size == (HEIGHT, WIDTH)
    with Image.open(photo) as picture:
        assert np.array_equal(np.asarray(stored), np.asarray(picture))
    assert open_image(stored).size == (WIDTH, HEIGHT)  # as Lira.look opens it
    assert np.array_equal(np.asarray(open_image(stored)), np.asarray(stored))


def test_refused_memory_is_not_taken_for_another_size(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = open_image(photo, upright=False)

    def refuse(path: Path) -> None:
        raise OutOfMemory("out of memory")

    monkeypatch.setattr("lira_bench.accuracy.worker.open_image", refuse)
    with pytest.raises(OutOfMemory):
        true_masks(item(LOW, size=(WIDTH, HEIGHT)), stored, photo)


def test_annotations_of_stored_pixels_are_used(photo: Path) -> None:
    stored = open_image(photo, upright=False)
    run_lengths = rle.encode(np.eye(HEIGHT, WIDTH, dtype=bool))
    for masks in (
        true_masks(item(POLYGON, size=(HEIGHT, WIDTH)), stored, photo),
        true_masks(item(POLYGON), stored, photo),
    ):
        assert masks[0].shape == (HEIGHT, WIDTH) and masks[0][1:9, 1:9].all()
    assert np.array_equal(true_masks(item(run_lengths), stored, photo)[0], np.eye(HEIGHT, WIDTH, dtype=bool))
    assert true_masks(item(), stored, photo) == []


@pytest.mark.parametrize(
    "turned",
    [
        item(POLYGON, size=(WIDTH, HEIGHT)),
        item(rle.encode(np.eye(WIDTH, HEIGHT, dtype=bool))),
        item([rle.encode(np.eye(WIDTH, HEIGHT, dtype=bool))]),
        item(POLYGON, LOW),
        item(size=(WIDTH, HEIGHT)),
    ],
    ids=["size", "run lengths", "list of run lengths", "polygon", "no masks"],
)
def test_annotations_of_the_turned_picture_are_left_out(photo: Path, turned: Item) -> None:
    with pytest.raises(LiraError) as error:
        true_masks(turned, open_image(photo, upright=False), photo)
    assert str(error.value) == (
        "photo.png is stored with 20 x 12 pixels, its annotations are for the 12 x 20 to which its EXIF "
        "orientation turns it: store it upright, without the tag"
    )


@pytest.mark.parametrize(
    ("neither", "said"),
    [
        (item(POLYGON, size=(HEIGHT, HEIGHT)), "has 20 x 12 pixels, its annotations are for 12 x 12"),
        (
            item(rle.encode(np.eye(5, dtype=bool))),
            "the mask is 5 x 5 (width x height), expected the image's 20 x 12",
        ),
        (item(FAR), "far outside of 20 x 12"),
    ],
)
def test_annotations_of_neither_size_are_left_out(photo: Path, neither: Item, said: str) -> None:
    with pytest.raises(LiraError) as error:
        true_masks(neither, open_image(photo, upright=False), photo)
    assert said in str(error.value) and "EXIF" not in str(error.value)


def test_a_polygon_over_the_edge_of_an_upright_picture_is_cut(photo: Path) -> None:
    picture = open_image(photo, upright=False)
    picture.save(photo)
    (mask,) = true_masks(item(LOW), picture, photo)
    assert mask[1:, 1:9].all()


def test_square_pictures_are_evaluated_as_stored(evaluate: Evaluate, tmp_path: Path) -> None:
    """If the pictures were turned, the same objects would be found, with masks elsewhere."""
    images = tmp_path / "turned"
    images.mkdir()
    for path in (evaluate.data / "images").iterdir():
        with Image.open(path) as picture:
            tagged(images / path.name, picture, 3)
    assert evaluate("refseg", "tagged", "--images", images, "--limit", 6) == 0
    assert evaluate("refseg", "plain", "--limit", 6) == 0
    assert evaluate.report("tagged")["metrics"] == evaluate.report("plain")["metrics"]


def test_a_turned_picture_is_left_out_by_name(evaluate: Evaluate, tmp_path: Path) -> None:
    content = json.loads((evaluate.data / "instances.json").read_text())
    refs = json.loads((evaluate.data / "refs.json").read_text())
    first, second = (next(ref for ref in refs if ref["image_id"] == number) for number in (0, 1))
    name = content["images"][0]["file_name"]
    content["images"][0] |= {"width": 300, "height": 384}
    for annotation in content["annotations"]:
        if annotation["image_id"] == 0:
            annotation["segmentation"] = [[10, 10, 200, 10, 200, 250, 10, 250]]
    (tmp_path / "images").mkdir()
    with Image.open(evaluate.data / "images" / name) as picture:
        tagged(tmp_path / "images" / name, picture.resize((384, 300)), 8)
    other = content["images"][1]["file_name"]
    (tmp_path / "images" / other).write_bytes((evaluate.data / "images" / other).read_bytes())
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (tmp_path / "refs.json").write_text(json.dumps([first, second]))
    assert evaluate("refseg", "out", data=tmp_path) == 0
    reasons = {entry["reason"] for entry in evaluate.report("out")["left_out"]}
    assert len(reasons) == 1 and f"{name} is stored with 384 x 300 pixels" in reasons.pop()
    assert evaluate.report("out")["counts"]["evaluated"] == len(second["sentences"])
