"""The page with the server that it belongs to; and whether the one that plays answers is like it."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import cv2
import httpx
import numpy as np
from PIL import Image

from lira_runtime import rle
from lira_runtime.draw import PALETTE


def test_a_picture_is_described_segmented_and_talked_about(served, serve, open_page):
    tab = open_page(served.url)
    assert tab.inner_text("#model").startswith("lira-nano · ")
    tab.take(serve.sample.read_bytes(), "sample.png")
    tab.fill("#words", "orange, red, blue")
    tab.ask()
    tab.done()
    assert tab.inner_text("#answer-text") == "an orange star, a house, a yellow circle and a fish."
    assert tab.locator(".phrase").all_inner_texts() == [
        "an orange star",
        "a house",
        "a yellow circle",
        "a fish",
    ]
    assert tab.locator("#attributes .word").first.inner_text() == "orange"

    lira = {"task": "gcg", "attributes": ["orange", "red", "blue"]}
    message = served.chat("", lira=lira)["choices"][0]["message"]
    shown = [phrase["mask"] for phrase in message["lira"]["phrases"]]
    masks = [rle.decode(message["lira"]["masks"][one]["rle"]) for one in shown]
    overlay = drawn(tab)
    for mask, ink in zip(masks, PALETTE, strict=False):
        core = cv2.erode(mask.astype(np.uint8), np.ones((13, 13))).astype(bool)
        tinted = np.abs(overlay[core][:, :3].astype(int) - ink).max(axis=1) < 15
        assert core.sum() > 2000 and tinted.mean() > 0.9  # all but its number
    outside = ~cv2.dilate(np.any(masks, axis=0).astype(np.uint8), np.ones((13, 13))).astype(bool)
    assert (overlay[outside][:, 3] > 70).mean() > 0.99 and overlay[outside][:, :3].max() < 30

    tab.fill("#words", "")
    tab.ask("Is there a fish in the image? Please answer yes or no.", "vqa")
    tab.done()
    assert tab.inner_text("#answer-text").lower().startswith("yes")
    assert "look" not in tab.locator(".lane-name").all_inner_texts()  # it has seen the picture before
    tab.ask("the orange star", "refseg")
    tab.done()
    assert tab.locator(".mask-name").all_inner_texts() == ["the orange star"]
    tab.check("#follow-up")
    tab.ask("What colour is it?", "vqa")  # lira-nano has learned no conversations: any answer will do
    tab.done()
    with tab.expect_download() as download:
        tab.click("#save-json")
    history = json.loads(download.value.path().read_text())["lira"]["history"]
    assert history["turns"] == 1 and history["rows_kept"] > 0 and history["as_text"] == 0
    tab.fill("#words", "the same, the same")
    tab.click("#ask")
    tab.wait_for_selector("#ask-problem:has-text('begin with the same token')")


def drawn(tab: Any) -> np.ndarray:
    """What lies over the picture, at the picture's size: [640, 640, 4] uint8."""
    uri = tab.evaluate(
        """() => {
          const copy = document.createElement("canvas");
          copy.width = copy.height = 640;
          copy.getContext("2d").drawImage(document.getElementById("masks"), 0, 0, 640, 640);
          return copy.toDataURL();
        }"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_server_that_plays_answers_is_like_the_real_one(served, serve, play, three):
    page = httpx.get(served.url)
    assert page.headers["content-security-policy"] == play.POLICY
    assert page.text == (play.PAGE / "index.html").read_text()
    model = httpx.get(f"{served.url}/v1/models").json()["data"][0]
    assert play.MODEL.keys() <= model.keys() and play.MODEL["lira"].keys() == model["lira"].keys()
    assert play.MODEL["lira"]["tasks"].keys() == model["lira"]["tasks"].keys()

    body = {"messages": [serve.question("", serve.data_uri())], "stream": True, "lira": {"task": "gcg"}}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=serve.wait) as response:
        real = kinds(response.read().decode())
    played = kinds("".join(lines for _, lines in play.grounded(three, regions=True)))
    for kind, (order, fields) in played.items():
        assert kind in real and fields <= real[kind][1], (kind, fields - real[kind][1])
        assert order == real[kind][0], kind


def kinds(stream: str) -> dict[str, tuple[int, set[str]]]:
    """Return the kinds of events in a stream: kind -> (its place by first appearance, all its fields)."""
    found: dict[str, tuple[int, set[str]]] = {}
    for line in stream.split("\n"):
        if line.startswith("data: {") and "lira" in (data := json.loads(line.removeprefix("data: "))):
            event = data["lira"]
            found.setdefault(event["type"], (len(found), set()))[1].update(event)
    return found
