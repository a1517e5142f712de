"""POST /v1/segment: a picture and words in, masks out in the formats that tools read."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from pycocotools import mask as coco

from lira_runtime import Lira
from lira_runtime.answer import Answer
from lira_serve.mask_formats import Polygon, png_to_mask, polygons_to_mask

FORMATS = ["rle", "polygons", "png", "svg", "label_studio"]
GCG = "an orange star, a house, a yellow circle and a fish."


@pytest.fixture(scope="module")
def answers(lira: Lira, sample: str) -> dict[str, Answer]:
    scene = lira.look(sample)
    return {
        "refseg": scene.ask(task="refseg", expression="the orange star"),
        "gcg": scene.ask(task="gcg"),
        "off": scene.ask(task="gcg", ilvc="off"),
    }


def segment(served: Any, **body: Any) -> dict[str, Any]:
    with served.client() as client:
        response = client.post("/v1/segment", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def refused(served: Any, status: int = 400, **request: Any) -> dict[str, Any]:
    with served.client() as client:
        response = client.post("/v1/segment", **request)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def of_rle(rle: dict[str, Any]) -> np.ndarray:
    decoded: np.ndarray = coco.decode({"size": rle["size"], "counts": rle["counts"].encode()})
    return decoded.astype(bool)


def test_an_expression(served: Any, serve: SimpleNamespace, answers: dict[str, Answer]) -> None:
    found = segment(served, image=serve.data_uri(), text="the orange star")
    (mask,) = found["masks"]
    (expected,) = answers["refseg"].masks
    assert np.array_equal(of_rle(mask["rle"]), expected.binary)
    assert (mask["id"], mask["label"], mask["score"]) == (0, "the orange star", expected.score)
    assert tuple(mask["box"]) == expected.box_xyxy
    assert mask["area"] == int(expected.binary.sum())
    assert set(mask) == {"id", "label", "score", "box", "area", "rle"}
    assert found["id"].startswith("seg-") and found["model"] == "lira-nano" and found["text"] == ""
    assert (found["image"]["width"], found["image"]["height"]) == (640, 640)
    assert found["finish_reason"] == "stop"
    stages = {"preprocess", "encode_semantic", "encode_pixel", "sefe"}
    assert set(found["timings"]["look"]) == stages and found["timings"]["new_tokens"] == 2


@pytest.mark.parametrize(("ilvc", "known"), [("auto", "gcg"), ("off", "off")])
def test_a_description_has_the_masks_to_show(
    served: Any, serve: SimpleNamespace, answers: dict[str, Answer], ilvc: str, known: str
) -> None:
    """With regions each object is masked twice: the phrases' masks are returned, with their numbers."""
    answer = answers[known]
    found = segment(served, image=serve.data_uri(), task="gcg", ilvc=ilvc)
    assert found["text"] == answer.text
    labels = [(mask["id"], mask["label"]) for mask in found["masks"]]
    phrases = [phrase for phrase in answer.phrases if phrase.mask is not None]
    assert labels == [(answer.masks.index(phrase.mask), phrase.text) for phrase in phrases if phrase.mask]
    assert len(labels) == 4
    for mask in found["masks"]:
        assert np.array_equal(of_rle(mask["rle"]), answer.masks[mask["id"]].binary)


def test_all_formats_are_one_mask(served: Any, serve: SimpleNamespace) -> None:
    found = segment(served, image=serve.data_uri(), text="the orange star", formats=FORMATS, tolerance=0)
    (mask,) = found["masks"]
    assert list(mask)[5:] == FORMATS
    binary = of_rle(mask["rle"])
    height, width = binary.shape
    polygons = [
        Polygon(np.array(one["exterior"]), tuple(np.array(hole) for hole in one["holes"]))
        for one in mask["polygons"]
    ]
    assert np.array_equal(polygons_to_mask(polygons, height, width), binary)
    kind, _, data = mask["png"].partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(png_to_mask(base64.b64decode(data)), binary)
    drawing = ElementTree.fromstring(mask["svg"])
    assert (drawing.get("width"), drawing.get("height")) == ("640", "640")
    assert "the orange star" in mask["svg"]
    item = mask["label_studio"]
    assert item["value"]["brushlabels"] == ["the orange star"]
    assert (item["original_width"], item["original_height"]) == (640, 640)
    json.dumps(item)


def test_the_tolerance_is_that_of_polygons_and_drawing(served: Any, serve: SimpleNamespace) -> None:
    corners, lengths = [], []
    for tolerance in (0, 1, 8):
        body = {"image": serve.data_uri(), "text": "the orange star", "formats": "polygons,svg"}
        (mask,) = segment(served, **body, tolerance=tolerance)["masks"]
        corners.append(sum(len(one["exterior"]) for one in mask["polygons"]))
        lengths.append(len(mask["svg"]))
        assert "rle" not in mask
    assert corners[0] > corners[1] > corners[2] >= 3
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("formats", [["polygons,rle"], ["polygons", "rle"], [" polygons , rle "]])
def test_a_form(served: Any, sample: str, formats: list[str], serve: SimpleNamespace) -> None:
    """What a form sends is what JSON sends, with numbers as texts."""
    with served.client() as client, open(sample, "rb") as file:
        response = client.post(
            "/v1/segment",
            files={"image": ("photo.png", file, "image/png")},
            data={"text": "the orange star", "formats": formats, "tolerance": "2.5", "max_tiles": "1"},
        )
    assert response.status_code == 200, response.text
    asked = {"formats": ["polygons", "rle"], "tolerance": 2.5, "max_tiles": 1}
    expected = segment(served, image=serve.data_uri(), text="the orange star", **asked)
    assert response.json()["masks"] == expected["masks"]
    assert list(response.json()["masks"][0])[5:] == ["polygons", "rle"]


def test_a_form_without_formats_has_run_lengths(served: Any, sample: str) -> None:
    with served.client() as client, open(sample, "rb") as file:
        response = client.post("/v1/segment", files={"image": file}, data={"text": "the fish"})
    (mask,) = response.json()["masks"]
    assert mask["label"] == "the fish" and "rle" in mask and "png" not in mask


def test_bare_base64(served: Any, serve: SimpleNamespace) -> None:
    bare = serve.data_uri().partition(",")[2]
    (mask,) = segment(served, image=bare, text="the fish")["masks"]
    assert mask["area"] > 1000


def test_the_scene_is_that_of_the_chat(served: Any, serve: SimpleNamespace, sample: str) -> None:
    """One picture is looked at once, whoever asks about it."""
    served.chat("", lira={"task": "caption"})
    found = segment(served, image=serve.data_uri(), text="the fish")
    assert not any(found["timings"]["look"].values()) and found["timings"]["cached_tokens"] > 0


def test_an_answer_without_masks(served: Any, serve: SimpleNamespace) -> None:
    found = segment(served, image=serve.data_uri(), task="caption", formats=FORMATS)
    assert found["masks"] == [] and found["text"].startswith("an orange star")


def test_max_tokens_may_leave_a_phrase_without_its_end(served: Any, serve: SimpleNamespace) -> None:
    found = segment(served, image=serve.data_uri(), task="gcg", max_tokens=4)
    assert found["finish_reason"] == "length"
    assert [(mask["id"], mask["label"]) for mask in found["masks"]] == [(0, "an orange")]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"image": None}, "image", "expected a data URI or base64"),
        ({"image": 5}, "image", "string"),
        ({"image": "data:text/plain,hello"}, "image", "text/plain"),
        ({"text": ""}, "text", "needs a text"),
        ({"text": " \n"}, "text", "needs a text"),
        ({"task": "gcg", "text": "a fish"}, "text", "has its own question"),
        ({"task": "segment"}, "task", "expected one of caption, gcg, refseg, vqa"),
        ({"formats": ["coco"]}, "formats.0", "'rle', 'polygons', 'png', 'svg' or 'label_studio'"),
        ({"formats": "rle,gif"}, "formats.1", "'rle', 'polygons'"),
        ({"tolerance": -1}, "tolerance", "greater than or equal to 0"),
        ({"tolerance": float("nan")}, "tolerance", "found nan"),
        ({"max_tiles": 13}, "max_tiles", "less than or equal to 12"),
        ({"ilvc": "never"}, "ilvc", "'auto', 'on', 'off' or 'plain'"),
        ({"model": "gpt"}, "model", "expected 'lira-nano'"),
    ],
)
def test_wrong_fields(
    served: Any, serve: SimpleNamespace, body: dict[str, Any], param: str | None, says: str
) -> None:
    sent = json.dumps({"image": serve.data_uri(), "text": "the fish", **body})
    error = refused(served, 404 if "model" in body else 400, content=sent)
    assert says in error["message"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_a_form_without_a_file(served: Any) -> None:
    error = refused(served, data={"text": "the fish"}, files={"photo": b"x"})
    assert "no file named image" in error["message"] and error["param"] == "image"


def test_a_form_with_a_file_that_is_no_picture(served: Any) -> None:
    error = refused(served, data={"text": "the fish"}, files={"image": b"GIF89a"})
    assert error["param"] == "image"
