"""Masks as PNG, SVG, COCO annotations and regions of Label Studio, read back by others' readers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pycocotools import mask as coco
from pycocotools.coco import COCO

from lira_engine.errors import LiraError
from lira_serve.mask_formats import (
    Polygon,
    mask_to_coco,
    mask_to_label_studio,
    mask_to_label_studio_polygons,
    mask_to_png,
    mask_to_rle,
    mask_to_svg,
    png_data_uri,
    png_to_mask,
    polygons_to_mask,
    rle_to_mask,
)


def masks() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(2)
    for shape in ((1, 1), (1, 9), (7, 1), (37, 50)):
        yield np.zeros(shape, bool)
        yield np.ones(shape, bool)
        yield rng.random(shape) < 0.5
    yield cv2.GaussianBlur(rng.random((120, 160), dtype=np.float32), (0, 0), 5) > 0.5
    yield np.hypot(*(np.mgrid[:300, :400] - 150)) < 99  # longer runs than the largest size of run
    yield np.asfortranarray(rng.random((20, 30)) < 0.3)[::-1]


every_mask = pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: "x".join(map(str, mask.shape)))


@every_mask
def test_pycocotools_decodes_the_runs(mask: np.ndarray) -> None:
    assert_array_equal(coco.decode(mask_to_rle(mask)), mask)
    assert_array_equal(rle_to_mask(mask_to_rle(mask)), mask)


# PNG


@every_mask
def test_opencv_reads_the_png(mask: np.ndarray) -> None:
    read = cv2.imdecode(np.frombuffer(mask_to_png(mask), np.uint8), cv2.IMREAD_UNCHANGED)
    assert_array_equal(read, mask * 255)


@every_mask
@pytest.mark.parametrize("depth", ["1 bit", "8 bits"])
def test_a_png_gives_the_mask_back(mask: np.ndarray, depth: str) -> None:
    data = mask_to_png(mask) if depth == "1 bit" else cv2.imencode(".png", mask * np.uint8(255))[1].tobytes()
    assert_array_equal(png_to_mask(data), mask)


def test_what_is_no_picture_gives_no_mask() -> None:
    with pytest.raises(LiraError, match="not an image"):
        png_to_mask(b"what is this")


def test_a_png_has_pixels() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        mask_to_png(np.zeros((0, 4), bool))


def test_the_data_uri_of_a_png() -> None:
    assert png_data_uri(b"\x89PNG") == "data:image/png;base64,iVBORw=="


# COCO


@every_mask
def test_pycocotools_reads_the_annotation(mask: np.ndarray) -> None:
    annotation = json.loads(json.dumps(mask_to_coco(mask, annotation_id=3, image_id=5, category_id=7)))
    data_set = COCO()
    height, width = mask.shape
    data_set.dataset = {
        "images": [{"id": 5, "height": height, "width": width}],
        "categories": [{"id": 7, "name": "star"}],
        "annotations": [annotation],
    }
    data_set.createIndex()
    (found,) = data_set.loadAnns(data_set.getAnnIds(imgIds=[5], catIds=[7], iscrowd=False))
    assert_array_equal(data_set.annToMask(found), mask)
    assert found["area"] == mask.sum()
    if mask.any():
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = columns[0], rows[0]
        assert found["bbox"] == [x, y, columns[-1] + 1 - x, rows[-1] + 1 - y]


# SVG


def filled(path: str, height: int, width: int) -> np.ndarray:
    """What the even-odd rule fills."""
    mask = np.zeros((height, width), bool)
    for ring in re.findall(r"M([^Z]*)Z", path):
        corners = [[int(number) for number in corner.split(",")] for corner in ring.split(" ")]
        mask ^= polygons_to_mask([Polygon(np.array(corners))], height, width)
    assert re.fullmatch(r"(M\d+,\d+( \d+,\d+)+Z)*", path)
    return mask


@every_mask
def test_the_svg_is_xml_whose_path_fills_the_mask(mask: np.ndarray) -> None:
    height, width = mask.shape
    root = ElementTree.fromstring(mask_to_svg(mask, tolerance=0))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox") == f"0 0 {width} {height}"
    (path,) = root
    assert path.get("fill-rule") == "evenodd"
    assert_array_equal(filled(path.get("d", "?"), height, width), mask)


def test_labels_cannot_leave_their_title() -> None:
    label = "]]></title><script>alert(1)</script> & \"quotes' \x00\x0b\ud800 é 星"
    root = ElementTree.fromstring(mask_to_svg(np.ones((2, 3), bool), [label]).encode())
    assert [element.tag.rpartition("}")[2] for element in root.iter()] == ["svg", "path", "title"]
    assert root[0][0].text == "]]></title><script>alert(1)</script> & \"quotes' \ufffd\ufffd\ufffd é 星"


def test_masks_have_their_labels_and_colours() -> None:
    several = [np.eye(4, dtype=bool), np.ones((4, 4), bool)]
    root = ElementTree.fromstring(mask_to_svg(several, ["line", "all"], ["#ff0000", "#00FF7f"], tolerance=0))
    assert [(path.get("fill"), path[0].text) for path in root] == [("#ff0000", "line"), ("#00FF7f", "all")]
    assert len({path.get("fill") for path in ElementTree.fromstring(mask_to_svg(np.array(several)))}) == 2


@pytest.mark.parametrize(
    ("several", "options", "message"),
    [
        ([np.ones((2, 2)), np.ones((2, 3))], {}, "expected one size"),
        ([np.ones((2, 2))], {"labels": ["a", "b"]}, "2 labels for 1 masks"),
        ([np.ones((2, 2))], {"colours": ['red" onload="alert(1)']}, "expected #rrggbb"),
        ([], {}, "expected at least one"),
    ],
)
def test_a_wrong_svg_is_refused(several: list[np.ndarray], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_to_svg(several, **options)


# Label Studio


def unpacked(data: list[int]) -> np.ndarray:
    """The values of @thi.ng/rle-pack's format, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    count = read(32)
    value_bits = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        same = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(value_bits)] * length if same else [read(value_bits) for _ in range(length)]
    assert len(values) == count
    assert len(bits) - at < 8
    return np.array(values)


@every_mask
def test_the_brush_gives_the_mask_back(mask: np.ndarray) -> None:
    item = json.loads(json.dumps(mask_to_label_studio(mask, "star", "brush", "photo", score=0.5)))
    height, width = item["original_height"], item["original_width"]
    assert (height, width) == mask.shape
    assert_array_equal(
        unpacked(item["value"]["rle"]).reshape(height, width, 4), np.repeat(mask[..., None] * 255, 4, axis=2)
    )


def test_the_brush_is_the_one_that_label_studio_writes() -> None:
    """What brush.mask2rle of label-studio-sdk 2.1.2 returned for this mask, without its padding."""
    mask = np.array([[0, 1, 1, 0, 0], [1, 1, 0, 0, 1]]) * 255
    recorded = [0, 0, 0, 40, 57, 27, 252, 96, 19, 255, 206, 1, 63, 252, 224, 17, 255, 128]
    assert mask_to_label_studio(mask, "star")["value"]["rle"] == recorded


def test_label_studios_own_package_decodes_the_brush() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    for mask in masks():
        value = mask_to_label_studio(mask, "star")["value"]
        assert_array_equal(brush.decode_rle(bytes(value["rle"])).reshape(*mask.shape, 4)[..., 3], mask * 255)


def test_a_brush_region_says_what_label_studio_needs() -> None:
    item = mask_to_label_studio(np.ones((3, 4), bool), "star", "brush", "photo", score=0.5, item_id="a1")
    value = item.pop("value")
    assert item == {
        "id": "a1",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "photo",
        "original_width": 4,
        "original_height": 3,
        "image_rotation": 0,
        "score": 0.5,
    }
    assert (value["format"], value["brushlabels"]) == ("rle", ["star"])


def test_regions_have_ids_of_their_own() -> None:
    mask = np.ones((3, 4), bool)
    first, second = mask_to_label_studio(mask, "star"), mask_to_label_studio(mask, "star")
    assert first["id"] != second["id"]
    assert "score" not in first


def test_polygons_are_percent_and_one_for_each_part() -> None:
    mask = np.zeros((20, 40), bool)
    mask[5:15, 10:20] = mask[0, 39] = True
    large, small = mask_to_label_studio_polygons(mask, "star", score=0.25)
    assert large["type"] == "polygonlabels"
    assert large["score"] == 0.25
    assert large["value"]["closed"] is True
    assert large["value"]["polygonlabels"] == ["star"]
    assert sorted(large["value"]["points"]) == [[25, 25], [25, 75], [50, 25], [50, 75]]
    assert sorted(small["value"]["points"]) == [[97.5, 0], [97.5, 5], [100, 0], [100, 5]]
