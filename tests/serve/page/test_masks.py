"""Masks on the picture and phrases in the text, and how they point at each other."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from lira_runtime.draw import PALETTE


def test_a_question_is_answered_with_phrases_and_masks_where_their_runs_say(
    fake, play, open_page, three, picture
):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
    tab.done()
    assert tab.inner_text("#answer-text") == "a star, a ring and a dot."
    assert tab.locator(".phrase").all_inner_texts() == ["a star", "a ring", "a dot"]
    colors = [
        tab.locator(".phrase").nth(i).evaluate("e => e.style.getPropertyValue('--mask')") for i in range(3)
    ]
    assert colors == ["#{:02x}{:02x}{:02x}".format(*ink) for ink in PALETTE[:3]]
    for (x, y), slot in (((60, 90), 0), ((230, 60), 1), ((150, 230), 2)):  # in a mask, beside its number
        *ink, alpha = tab.pixel(x, y)
        assert np.abs(np.array(ink) - PALETTE[slot]).max() < 12 and 35 < alpha < 80, (slot, ink, alpha)
    edges = [
        ((80 + 45 * x, 80 + 45 * y), (80 + 55 * x, 80 + 55 * y))
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    for within, beyond in edges:
        assert tab.pixel(*within)[2] > 200 and max(tab.pixel(*beyond)[:3]) < 30, (within, beyond)
    for x, y in ((230, 100), (20, 20), (160, 170)):  # in the ring's hole, and outside all masks
        *ink, alpha = tab.pixel(x, y)
        assert max(ink) < 30 and alpha > 60, (x, y, ink, alpha)
    body = fake.asked[0]
    assert body["lira"] == {"ilvc": "auto", "task": "gcg"} and body["stream"] is True
    sent = body["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(sent.partition(",")[2]) == picture()  # the file as it is


def test_masks_come_while_the_answer_runs_and_the_text_grows(fake, play, open_page, three):
    held = threading.Event()
    chunks = play.grounded(three)
    second = [i for i, (_, lines) in enumerate(chunks) if play.has_event("phrase", lines)][1]

    def reply(body: dict[str, Any]) -> Any:
        return play.stream(chunks[: second + 1], until=held, rest=chunks[second + 1 :])

    fake.reply = reply
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
    tab.wait_for_selector(".phrase >> nth=1")
    tab.settled()
    assert tab.inner_text("#answer-text") == "a star, a ring"
    assert tab.get_attribute("#answer-text", "aria-busy") == "true" and tab.inner_text("#ask") == "Stop"
    assert tab.pixel(230, 60)[3] < 100 and max(tab.pixel(150, 230)[:3]) < 30  # not the third
    assert tab.locator(".lane-name").all_inner_texts()[:4] == ["look", "prefill", "tokens", "masks"]
    held.set()
    tab.done()
    assert tab.pixel(150, 230)[1] > 100
    assert tab.get_attribute("#answer-text", "aria-busy") == "false" and tab.inner_text("#ask") == "Ask"


def test_a_mask_that_only_repeats_a_region_is_never_shown(fake, play, open_page, three):
    chunks = play.grounded(three, regions=True)
    held = threading.Event()
    last = [i for i, (_, lines) in enumerate(chunks) if play.has_event("mask", lines)][-1]
    fake.reply = lambda body: play.stream(chunks[: last + 1], until=held, rest=chunks[last + 1 :])
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
    tab.wait_for_selector(".span.repeat >> nth=2")  # all six have come
    assert tab.locator(".mask-row").count() == 3
    assert tab.locator(".phrase").evaluate_all("all => all.map((e) => e.dataset.number)") == ["1", "2", "3"]
    held.set()
    tab.done()
    assert tab.locator(".mask-row").count() == 3 and tab.locator(".span.repeat").count() == 3
    assert tab.locator(".lane-name").all_inner_texts()[:5] == [
        "look",
        "prefill",
        "tokens",
        "masks",
        "regions",
    ]


def test_the_region_is_framed_that_the_model_looks_at_again(fake, play, open_page, three):
    chunks = play.grounded(three, regions=True)
    held = threading.Event()
    first = next(i for i, (_, lines) in enumerate(chunks) if play.has_event("region", lines))
    fake.reply = lambda body: play.stream(chunks[: first + 1], until=held, rest=chunks[first + 1 :])
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
    tab.wait_for_selector(".mask-row")
    tab.settled()
    side = [(x, 30) for x in range(34, 60)]  # of its box, 30..130, left of the disc

    def dashes() -> int:
        return sum(tab.pixel(x, y)[2] > 150 for x, y in side)

    assert 5 < dashes() < len(side)
    held.set()
    tab.done()
    assert dashes() == 0


def test_phrases_keep_their_place_behind_characters_of_two_units(fake, play, open_page, shapes):
    fake.reply = lambda body: play.stream(
        play.grounded([("😀🐟 is ", "a fish 🐟", shapes[0]), (" <b>&", "", None)])
    )
    tab = open_page(fake.url)
    tab.take()
    tab.ask("What is it?", "free")
    tab.done()
    assert tab.locator(".phrase").all_inner_texts() == ["a fish 🐟"]
    assert tab.inner_text("#answer-text") == "😀🐟 is a fish 🐟 <b>&"  # text, never markup
    assert "task" not in fake.asked[0]["lira"]


def test_pictures_are_turned_upright_as_the_server_does(fake, play, open_page):
    image = Image.new("RGB", (200, 100), (200, 30, 30))
    image.paste((30, 30, 200), (0, 0, 100, 100))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=95)
    tab = open_page(fake.url)
    tab.take(file.getvalue(), "turned.jpg", "image/jpeg")
    assert "100 × 200" in tab.inner_text("#picture-name")
    top = tab.evaluate(
        "() => { const c = document.getElementById('picture'); "
        "return [...c.getContext('2d').getImageData(c.width / 2, 5, 1, 1).data]; }"
    )
    assert top[2] > 150 and top[0] < 80  # the left, blue half is now the upper one


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_masks_fade_in_unless_motion_is_unwanted(fake, play, open_page, three, motion):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url, reduced_motion=motion)
    tab.take()
    tab.evaluate(
        """() => {
          const canvas = document.getElementById("masks");
          const place = [Math.round(0.19 * canvas.width), Math.round(0.28 * canvas.height), 1, 1];
          window.seen = new Set();
          const look = () => {
            window.seen.add(canvas.getContext("2d").getImageData(...place).data[3]);
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    tab.ask()
    tab.done()
    seen = sorted(tab.evaluate("[...window.seen]"))
    assert seen[0] == 0 and seen[-1] == pytest.approx(255 * 0.2, abs=2)
    assert len(seen) == 2 if motion == "reduce" else len(seen) > 3, seen
    running = "document.getAnimations().filter((one) => one.playState === 'running').length"
    assert tab.evaluate(running) == 0 or motion != "reduce"


def test_phrase_and_mask_light_each_other_up(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
    tab.done()
    calm = tab.pixel(20, 20)[3], tab.pixel(150, 230)[3]
    tab.hover(".phrase >> nth=1")
    tab.settled()
    assert tab.locator(".lit").evaluate_all("all => [...new Set(all.map((e) => e.dataset.mask))]") == ["1"]
    assert tab.pixel(20, 20)[3] > calm[0] + 30 and tab.pixel(150, 230)[0] < 60  # the rest steps back
    tab.point_at(230, 60)  # on the ring
    assert tab.locator(".phrase.lit").all_inner_texts() == ["a ring"]
    assert tab.inner_text("#tip") == "a ring"
    tab.point_at(230, 100)  # in its hole
    assert tab.locator(".lit").count() == 0
    tab.point_at(80, 80)
    assert tab.locator(".phrase.lit, .mask-row.lit").count() == 2
    tab.mouse.down()
    tab.mouse.up()
    tab.mouse.move(5, 5)
    assert tab.locator(".phrase.lit").all_inner_texts() == ["a star"]  # pressed: it stays
    assert tab.locator("[aria-pressed=true][data-mask]").count() == 2
    tab.keyboard.press("Escape")
    assert tab.locator(".lit").count() == 0


def test_masks_stay_on_their_objects_when_the_window_changes(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
    tab.done()
    wide = tab.locator("#masks").bounding_box()
    tab.set_viewport_size({"width": 420, "height": 800})
    tab.settled()
    narrow = tab.locator("#masks").bounding_box()
    assert narrow["width"] < wide["width"] and narrow == tab.locator("#picture").bounding_box()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 420
    assert np.abs(np.array(tab.pixel(60, 90)[:3]) - PALETTE[0]).max() < 12
    tab.point_at(60, 90)
    assert tab.locator(".phrase.lit").all_inner_texts() == ["a star"]


def test_files_hold_the_masks(fake, play, open_page, three, shapes, tmp_path):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
    tab.done()
    files: dict[str, Path] = {}
    for ending in ("png", "svg", "json"):
        with tab.expect_download() as download:
            tab.click(f"#save-{ending}")
        assert download.value.suggested_filename == f"grey-lira.{ending}"
        files[ending] = tmp_path / ending
        download.value.save_as(files[ending])
    pixels = np.asarray(Image.open(files["png"]).convert("RGB")).astype(int)
    assert pixels.shape == (320, 320, 3)
    tinted = 120 + 0.2 * (np.array(PALETTE[0]) - 120)
    assert np.abs(pixels[90, 60] - tinted).max() < 6 and pixels[20, 20].max() < 100
    told = json.loads(files["json"].read_text())
    assert told["content"] == "a star, a ring and a dot." and told["lira"]["finish_reason"] == "stop"
    for one, shape in zip(told["lira"]["masks"], shapes, strict=True):
        assert (coco.decode(one["rle"]) == shape).all()
    drawn = files["svg"].read_text()
    assert drawn.count("<path") == 3 and "<title>a ring</title>" in drawn and "data:image/png" in drawn
