"""The page in a real browser, against a server that plays answers."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from lira_runtime.draw import PALETTE

Tab = Any  # playwright.sync_api.Page, which need not be installed to read this file
SIDE = 320  # pixels of the pictures here


def png(width: int = SIDE, height: int = SIDE, ink: tuple[int, int, int] = (120, 120, 120)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), ink).save(file, "PNG")
    return file.getvalue()


def take(tab: Tab, data: bytes | None = None, name: str = "grey.png", kind: str = "image/png") -> None:
    """Choose a picture, as the button's dialog does."""
    tab.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data or png()})
    tab.wait_for_selector("#masks:visible")


def ask(tab: Tab, text: str = "", task: str = "gcg") -> None:
    tab.check(f"input[name=task][value={task}]", force=True)
    if text:
        tab.fill("#question", text)
    tab.click("#ask")


def done(tab: Tab) -> None:
    tab.wait_for_selector("#answer:not(.running)")
    settled(tab)


def settled(tab: Tab) -> None:
    """Wait until nothing on the picture moves."""
    tab.evaluate(
        """() => new Promise((resolve) => {
          const canvas = document.getElementById("masks");
          let before = "";
          const look = () => {
            const now = canvas.toDataURL();
            if (now === before) resolve();
            else { before = now; setTimeout(look, 60); }
          };
          look();
        })"""
    )


def pixel(tab: Tab, x: float, y: float) -> list[int]:
    """RGBA of what is drawn over pixel (x, y) of the picture."""
    found: list[int] = tab.evaluate(
        """([x, y, side]) => {
          const canvas = document.getElementById("masks");
          const at = [Math.round((x / side) * canvas.width), Math.round((y / side) * canvas.height)];
          return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
        }""",
        [x, y, SIDE],
    )
    return found


def point_at(tab: Tab, x: float, y: float) -> None:
    """Move the pointer to pixel (x, y) of the picture."""
    box = tab.locator("#masks").bounding_box()
    tab.mouse.move(box["x"] + x / SIDE * box["width"], box["y"] + y / SIDE * box["height"])


@pytest.fixture
def shapes(play: SimpleNamespace) -> list[np.ndarray]:
    """A disc, a ring and a disc on a picture of 320 x 320."""
    return [
        play.disc(SIDE, SIDE, 80, 80, 50),
        play.disc(SIDE, SIDE, 230, 100, 60, hole=25),
        play.disc(SIDE, SIDE, 160, 250, 40),
    ]


@pytest.fixture
def three(play: SimpleNamespace, shapes: list[np.ndarray]) -> list[tuple[str, str, np.ndarray | None]]:
    return [("", "a star", shapes[0]), (", ", "a ring", shapes[1]), (" and ", "a dot", shapes[2]), (".", "", None)]


# --- what is on the picture ---------------------------------------------------------------------------


def test_a_question_is_answered_with_phrases_and_masks_where_their_runs_say(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    take(tab)
    ask(tab)
    done(tab)
    assert tab.inner_text("#answer-text") == "a star, a ring and a dot."
    assert tab.locator(".phrase").all_inner_texts() == ["a star", "a ring", "a dot"]
    colors = [tab.locator(".phrase").nth(i).evaluate("e => e.style.getPropertyValue('--mask')") for i in range(3)]
    assert colors == ["#%02x%02x%02x" % ink for ink in PALETTE[:3]]
    for (x, y), slot in (((60, 90), 0), ((230, 60), 1), ((150, 230), 2)):  # in a mask, beside its number
        *ink, alpha = pixel(tab, x, y)
        assert np.abs(np.array(ink) - PALETTE[slot]).max() < 12 and 40 < alpha < 100, (slot, ink, alpha)
    for x, y in ((230, 100), (20, 20), (160, 170)):  # in the ring's hole, and outside all masks
        *ink, alpha = pixel(tab, x, y)
        assert max(ink) < 30 and alpha > 60, (x, y, ink, alpha)
    body = fake.asked[0]
    assert body["lira"] == {"ilvc": "auto", "task": "gcg"} and body["stream"] is True
    sent = body["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(sent.partition(",")[2]) == png()  # the file as it is


def test_masks_come_while_the_answer_runs_and_the_text_grows(fake, play, open_page, three):
    held = threading.Event()
    chunks = play.grounded(three)
    second = [i for i, (_, lines) in enumerate(chunks) if lines.startswith("event: lira.phrase")][1]

    def reply(body: dict[str, Any]) -> Any:
        return play.stream(chunks[: second + 1], until=held, rest=chunks[second + 1 :])

    fake.reply = reply
    tab = open_page(fake.url)
    take(tab)
    ask(tab)
    tab.wait_for_selector(".phrase >> nth=1")
    settled(tab)
    assert tab.inner_text("#answer-text") == "a star, a ring"
    assert tab.get_attribute("#answer-text", "aria-busy") == "true" and tab.inner_text("#ask") == "Stop"
    assert pixel(tab, 230, 60)[3] < 100 and max(pixel(tab, 150, 230)[:3]) < 30  # not the third
    assert tab.locator(".lane-name").all_inner_texts()[:4] == ["look", "prefill", "tokens", "masks"]
    held.set()
    done(tab)
    assert pixel(tab, 150, 230)[1] > 100
    assert tab.get_attribute("#answer-text", "aria-busy") == "false" and tab.inner_text("#ask") == "Ask"


def test_a_mask_that_only_repeats_a_region_is_not_shown(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three, regions=True))
    tab = open_page(fake.url)
    take(tab)
    ask(tab)
    done(tab)
    assert tab.locator(".mask-row").count() == 3 and tab.locator(".span.repeat").count() == 3
    assert tab.locator(".lane-name").all_inner_texts()[:5] == ["look", "prefill", "tokens", "masks", "regions"]


def test_masks_are_decoded_as_pycocotools_does(fake, open_page):
    random = np.random.default_rng(3)
    masks = [random.random((h, w)) < share for h, w, share in ((1, 1, 1.0), (7, 5, 0.5), (64, 90, 0.02), (3, 40, 0.9))]
    masks += [np.zeros((9, 4), bool), np.ones((5, 6), bool)]
    large = np.zeros((3000, 2000), bool)
    large[100:2900, 37:1950] = random.random((2800, 1913)) < 0.999
    masks.append(large)
    encoded = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    sent = [{"size": one["size"], "counts": one["counts"].decode()} for one in encoded]
    tab = open_page(fake.url)
    found = tab.evaluate(
        """async (all) => {
          const { BinaryMask } = await import("/page/rle.js");
          return all.map((rle) => {
            const mask = new BinaryMask(rle);
            const rows = mask.rows();
            let agree = 0;  // has() asks the runs, rows() paints them
            for (let i = 0; i < rows.length; i += 7) {
              agree += mask.has(i % mask.width, Math.floor(i / mask.width)) === (rows[i] === 1);
            }
            let text = "";
            for (let i = 0; i < rows.length; i += 8192) text += String.fromCharCode(...rows.subarray(i, i + 8192));
            return [mask.area, agree === Math.ceil(rows.length / 7), btoa(text)];
          });
        }""",
        sent,
    )
    for mask, one, (area, agrees, rows) in zip(masks, encoded, found, strict=True):
        decoded = np.frombuffer(base64.b64decode(rows), np.uint8).reshape(mask.shape)
        assert (decoded == coco.decode(one)).all() and area == mask.sum() and agrees
    refused = tab.evaluate(
        """async (bad) => {
          const { runEnds } = await import("/page/rle.js");
          return bad.map((rle) => { try { runEnds(rle); return ""; } catch (error) { return error.message; } });
        }""",
        [{"size": [2, 2], "counts": "3"}, {"size": [2, 2], "counts": "\x7f"}],
    )
    assert refused == ["a mask's counts cover 3 pixels, expected 2 x 2", "unexpected character in a mask's counts at 0"]


def test_outlines_enclose_exactly_the_pixels(fake, open_page):
    mask = np.random.default_rng(5).random((23, 31)) < 0.5
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    tab = open_page(fake.url)
    curves = tab.evaluate(
        """async (rle) => {
          const { BinaryMask } = await import("/page/rle.js");
          const { edges, corners } = await import("/page/outlines.js");
          return edges(new BinaryMask(rle)).map(corners);
        }""",
        {"size": encoded["size"], "counts": encoded["counts"].decode()},
    )
    row, column = np.mgrid[:23, :31] + 0.5
    inside = np.zeros(mask.shape, bool)  # even-odd rule: a ray to the right crosses upright sides an odd number of times
    for curve in curves:
        points = np.array(curve).reshape(-1, 2)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            assert x0 == x1 or y0 == y1
            inside ^= (x0 == x1) & (column < x0) & (min(y0, y1) < row) & (row < max(y0, y1))
    assert (inside == mask).all()


def test_phrases_keep_their_place_behind_characters_of_two_units(fake, play, open_page, shapes):
    fake.reply = lambda body: play.stream(play.grounded([("😀🐟 is ", "a fish 🐟", shapes[0]), (" <b>&", "", None)]))
    tab = open_page(fake.url)
    take(tab)
    ask(tab, "What is it?", "free")
    done(tab)
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
    take(tab, file.getvalue(), "turned.jpg", "image/jpeg")
    assert "100 × 200" in tab.inner_text("#picture-name")
    top = tab.evaluate(
        "() => { const c = document.getElementById('picture'); "
        "return [...c.getContext('2d').getImageData(c.width / 2, 5, 1, 1).data]; }"
    )
    assert top[2] > 150 and top[0] < 80  # the left, blue half is now the upper one


# --- pointing -----------------------------------------------------------------------------------------


def test_phrase_and_mask_light_each_other_up(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    take(tab)
    ask(tab)
    done(tab)
    calm = pixel(tab, 20, 20)[3], pixel(tab, 150, 230)[3]
    tab.hover(".phrase >> nth=1")
    settled(tab)
    assert tab.locator(".lit").evaluate_all("all => [...new Set(all.map((e) => e.dataset.mask))]") == ["1"]
    assert pixel(tab, 20, 20)[3] > calm[0] + 30 and pixel(tab, 150, 230)[0] < 60  # the rest steps back
    point_at(tab, 230, 60)  # on the ring
    assert tab.locator(".phrase.lit").all_inner_texts() == ["a ring"]
    assert tab.inner_text("#tip") == "a ring"
    point_at(tab, 230, 100)  # in its hole
    assert tab.locator(".lit").count() == 0
    point_at(tab, 80, 80)
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
    take(tab)
    ask(tab)
    done(tab)
    wide = tab.locator("#masks").bounding_box()
    tab.set_viewport_size({"width": 420, "height": 800})
    settled(tab)
    narrow = tab.locator("#masks").bounding_box()
    assert narrow["width"] < wide["width"] and narrow == tab.locator("#picture").bounding_box()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 420
    assert np.abs(np.array(pixel(tab, 60, 90)[:3]) - PALETTE[0]).max() < 12
    point_at(tab, 60, 90)
    assert tab.locator(".phrase.lit").all_inner_texts() == ["a star"]


# --- questions ----------------------------------------------------------------------------------------


def test_a_picture_can_be_dropped_and_pasted(fake, open_page):
    tab = open_page(fake.url)
    for kind, name in (("drop", "dropped.png"), ("paste", "pasted.png")):
        tab.evaluate(
            """([kind, name, data]) => {
              const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
              const transfer = new DataTransfer();
              transfer.items.add(new File([bytes], name, { type: "image/png" }));
              const event = kind === "drop"
                ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
              document.body.dispatchEvent(event);
            }""",
            [kind, name, base64.b64encode(png()).decode()],
        )
        tab.wait_for_selector(f"#picture-name:has-text('{name}')")
    tab.click("#another")
    take(tab, b"GIF89a no picture", "cat.png")
    assert "cat.png is no picture that can be read" in tab.inner_text("#picture-problem")
    assert "pasted.png" in tab.inner_text("#picture-name")  # the one before stays
    tab.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"})
    tab.wait_for_selector("#picture-problem:has-text('a.txt is no picture')")


def test_attributes_options_and_the_timeline(fake, play, open_page, three):
    words = [{"word": "orange", "probability": 0.886}, {"word": "red", "probability": 0.114}]
    ranked = [{"mask": 0, "words": words}]
    fake.reply = lambda body: play.stream(play.grounded(three, attributes=ranked))
    tab = open_page(fake.url)
    take(tab)
    tab.fill("#words", "orange, red")
    tab.select_option("#tiles", "4")
    tab.uncheck("#ilvc", force=True)
    ask(tab, "the star", "refseg")
    done(tab)
    wanted = {"ilvc": "off", "task": "refseg", "max_tiles": 4, "attributes": ["orange", "red"]}
    assert fake.asked[0]["lira"] == wanted
    assert tab.inner_text("#attributes .group-name") == "a star"
    assert tab.locator("#attributes li").all_inner_texts() == ["orange\n88.6 %", "red\n11.4 %"]
    widths = [box["width"] for box in (one.bounding_box() for one in tab.locator(".bar-fill").all())]
    assert widths[0] / widths[1] == pytest.approx(0.886 / 0.114, rel=0.05)
    assert "first token after 200 ms" in tab.inner_text("#timeline-words")
    assert "50.0tok/s" in tab.inner_text("#rates").replace("\n", "")


def test_earlier_questions_come_back_and_a_question_may_follow_up(fake, play, open_page, three, shapes):
    tab = open_page(fake.url)
    take(tab)
    fake.reply = lambda body: play.stream(play.grounded(three))
    ask(tab)
    done(tab)
    fake.reply = lambda body: play.stream(play.grounded([("Red.", "", None)]))
    tab.check("#follow-up")
    ask(tab, "Which colour is it?", "vqa")
    done(tab)
    said = [(message["role"], message["content"]) for message in fake.asked[1]["messages"][1:]]
    assert said == [("assistant", "a star, a ring and a dot."), ("user", "Which colour is it?")]
    assert tab.locator(".earlier-row").count() == 2 and tab.locator(".mask-row").count() == 0
    tab.click(".earlier-row >> nth=1")
    assert tab.locator(".mask-row").count() == 3 and pixel(tab, 60, 90)[2] > 200  # at once, without fading
    tab.uncheck("#follow-up")
    ask(tab, "And now?", "vqa")
    done(tab)
    assert len(fake.asked[2]["messages"]) == 1
    take(tab, png(ink=(10, 90, 10)), "other.png")
    assert tab.locator("#answer:visible, #earlier:visible").count() == 0  # another picture, nothing asked


def test_files_hold_the_masks(fake, play, open_page, three, shapes, tmp_path):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    take(tab)
    ask(tab)
    done(tab)
    files: dict[str, Path] = {}
    for ending in ("png", "svg", "json"):
        with tab.expect_download() as download:
            tab.click(f"#save-{ending}")
        assert download.value.suggested_filename == f"grey-lira.{ending}"
        files[ending] = tmp_path / ending
        download.value.save_as(files[ending])
    pixels = np.asarray(Image.open(files["png"]).convert("RGB")).astype(int)
    assert pixels.shape == (SIDE, SIDE, 3)
    tinted = 120 + 0.26 * (np.array(PALETTE[0]) - 120)
    assert np.abs(pixels[90, 60] - tinted).max() < 6 and pixels[20, 20].max() < 100
    told = json.loads(files["json"].read_text())
    assert told["content"] == "a star, a ring and a dot." and told["lira"]["finish_reason"] == "stop"
    for one, shape in zip(told["lira"]["masks"], shapes, strict=True):
        assert (coco.decode(one["rle"]) == shape).all()
    drawn = files["svg"].read_text()
    assert drawn.count("<path") == 3 and "<title>a ring</title>" in drawn and "data:image/png" in drawn


# --- when things go wrong -----------------------------------------------------------------------------


def test_stop_closes_the_request_and_keeps_what_came(fake, play, open_page, three):
    gone = threading.Event()
    chunks = play.grounded(three)
    fake.reply = lambda body: play.stream([*chunks[:12], (30.0, chunks[12][1])], gone)
    tab = open_page(fake.url)
    take(tab)
    ask(tab)
    tab.wait_for_selector(".mask-row")
    tab.keyboard.press("Escape")
    done(tab)
    assert gone.wait(5)
    assert tab.inner_text("#progress") == "Stopped here." and tab.locator(".mask-row").count() >= 1
    assert tab.inner_text("#ask-label") == "Ask" and tab.inner_text("#status") == "Stopped."


def test_a_busy_server_is_asked_again(fake, play, open_page, three):
    fake.reply = lambda body: play.refusal(503, "8 questions wait", {"Retry-After": "1"}, code="busy")
    tab = open_page(fake.url)
    take(tab)
    ask(tab)
    tab.wait_for_selector("#ask-problem:has-text('8 questions wait. Asking again in 1 s.')")
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab.wait_for_selector(".mask-row >> nth=2")
    assert tab.inner_text("#ask-problem") == "" and len(fake.asked) == 2


def test_a_key_is_asked_for_and_kept_for_this_tab(fake, play, open_page, three):
    fake.key = "secret"
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url, state="gone")
    assert tab.inner_text("#connection") == "A key is needed"
    assert tab.evaluate("document.activeElement.id") == "key"
    tab.keyboard.type("secret")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#connection[data-state=ready]")
    assert tab.locator("#key-form:visible").count() == 0
    take(tab)
    ask(tab)
    done(tab)
    assert tab.locator(".mask-row").count() == 3
    assert tab.evaluate("[Object.keys(sessionStorage), Object.keys(localStorage)]") == [["lira-key"], []]


def test_a_server_that_goes_and_comes_back(fake, play, open_page, three):
    chunks = play.grounded(three)
    fake.reply = lambda body: play.stream([*chunks[:12], (30.0, chunks[12][1])])
    tab = open_page(fake.url)
    take(tab)
    ask(tab)
    tab.wait_for_selector(".mask-row")
    fake.stop()
    tab.wait_for_selector("#answer-problem:has-text('The server broke off in the middle of the answer.')")
    tab.wait_for_selector("#connection[data-state=gone]")
    assert tab.locator(".phrase").first.inner_text() == "a star"  # what came stays
    assert tab.is_disabled("#ask")
    fake.reply = lambda body: play.stream(chunks)
    fake.start()
    tab.wait_for_selector("#connection[data-state=ready]")
    tab.click("text=Ask again")
    tab.wait_for_selector(".mask-row >> nth=2")


def test_errors_of_a_question_stand_at_the_question(fake, play, open_page):
    tab = open_page(fake.url)
    ask(tab)
    assert tab.inner_text("#ask-problem") == "Choose a picture first."
    take(tab)
    ask(tab, task="refseg")
    assert tab.inner_text("#ask-problem") == "Write what to segment." and fake.asked == []
    fake.reply = lambda body: play.refusal(400, "the vocabulary has no token for '<i>'; expected known words")
    ask(tab, "a star", "refseg")
    tab.wait_for_selector("#ask-problem:has-text(\"no token for '<i>'\")")
    fake.reply = lambda body: play.refusal(413, "the body has 90 MB; expected at most 64 MB")
    tab.click("#ask")
    tab.wait_for_selector("#picture-problem:has-text('expected at most 64 MB')")
    error = json.dumps({"error": {"message": "the prompt has 900 tokens", "type": "invalid_request_error"}})
    fake.reply = lambda body: play.stream([(0.0, f"event: error\ndata: {error}\n\n")])
    tab.click("#ask")
    tab.wait_for_selector("#ask-problem:has-text('the prompt has 900 tokens')")
    assert tab.locator("#answer:visible").count() == 0


# --- people -------------------------------------------------------------------------------------------


def test_everything_works_by_keyboard(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    press = tab.keyboard.press

    def on(selector: str) -> bool:
        found: bool = tab.evaluate("selector => document.activeElement.matches(selector)", selector)
        return found

    def reach(selector: str) -> None:
        for _ in range(40):
            if on(selector):
                break
            press("Tab")
        assert on(selector)
        outline = "e => getComputedStyle(e.matches('input[type=radio]') ? e.nextSibling : e).outlineStyle"
        assert tab.locator(":focus").evaluate(outline) == "solid", selector

    reach("#sample")
    press("Enter")
    tab.wait_for_selector("#masks:visible")
    assert tab.locator(":focus").get_attribute("value") == "gcg"
    press("ArrowRight")
    assert on("[value=refseg]") and tab.locator("#question:visible").count() == 1
    press("ArrowLeft")
    press("Control+Enter")
    done(tab)
    reach(".phrase")
    assert tab.locator(".mask-row.lit").get_attribute("data-label") == "a star"
    press("Tab")
    press("Enter")
    assert tab.locator("[aria-pressed=true].phrase").inner_text() == "a ring"
    for selector in (".mask-row", "#save-png", "#another", "#theme"):
        reach(selector)


def test_a_screen_reader_finds_names_and_roles(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    take(tab)
    ask(tab)
    done(tab)
    for role, name in (
        ("heading", "lira-edge"),
        ("button", "Dark theme"),
        ("img", "grey.png, 320 by 320 pixels, with masks: a star, a ring, a dot"),
        ("form", "Question"),
        ("radio", "Describe"),
        ("switch", "ILVC"),
        ("combobox", "Tiles"),
        ("textbox", "Attributes"),
        ("button", "Ask"),
        ("region", "Answer"),
        ("button", "a ring"),
        ("button", "Mask 2, a ring: 9.1 % of the picture, top right, score 0.97"),
        ("group", "Download"),
        ("region", "Timeline"),
    ):
        assert tab.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    unnamed = "[...document.querySelectorAll('button, input, select, textarea')].filter((e) => !e.hidden)"
    tree = tab.locator("body").aria_snapshot()
    assert tab.evaluate(f"{unnamed}.length") > 15
    assert not [line for line in tree.splitlines() if line.strip().lstrip("- ") in ("button", "textbox", "combobox")]
    assert tab.get_attribute("#answer-text", "aria-live") == "polite"
    assert tab.inner_text("#status") == "The answer is complete, with 3 masks."


def test_themes_follow_the_system_until_one_is_chosen(fake, open_page):
    tab = open_page(fake.url, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(paper) == "rgb(15, 17, 21)"
    tab.emulate_media(color_scheme="light")
    tab.wait_for_selector("html[data-theme=light]")
    assert tab.evaluate(paper) == "rgb(250, 250, 248)"
    tab.click("#theme")
    assert tab.evaluate(paper) == "rgb(15, 17, 21)"
    take(tab)
    tab.fill("#words", "secret")
    tab.reload()
    tab.wait_for_selector("#connection[data-state=ready]")
    assert tab.evaluate(paper) == "rgb(15, 17, 21)"  # the choice stays
    assert tab.input_value("#words") == "" and tab.locator("#empty:visible").count() == 1  # nothing else does


def test_calm_motion_is_respected(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url, reduced_motion="reduce")
    take(tab)
    ask(tab)
    tab.wait_for_selector("#answer:not(.running) .mask-row")
    tab.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    assert pixel(tab, 60, 90)[3] == pytest.approx(255 * 0.26, abs=2)  # in the next frame, without fading
    running = "document.getAnimations().filter((one) => one.playState === 'running').length"
    assert tab.evaluate(running) == 0


def test_two_tabs_know_nothing_of_each_other(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    other = tab.context.new_page()
    other.goto(fake.url)
    other.wait_for_selector("#connection[data-state=ready]")
    take(tab, name="one.png")
    take(other, name="two.png")
    ask(tab)
    done(tab)
    assert other.locator("#answer:visible").count() == 0 and "two.png" in other.inner_text("#picture-name")
    fake.reply = lambda body: play.stream(play.grounded(three[:1]))
    ask(other)
    done(other)
    assert other.locator(".mask-row").count() == 1 and tab.locator(".mask-row").count() == 3


def test_colours_are_those_of_the_pictures_that_the_runtime_draws(fake, open_page):
    tab = open_page(fake.url)
    found = tab.evaluate("import('/page/palette.js').then((colors) => colors.PALETTE)")
    assert found == ["#%02x%02x%02x" % ink for ink in PALETTE]


def test_events_are_read_however_the_network_cuts_them(fake, open_page):
    text = 'event: a\r\ndata: é1\r\ndata: 2\r\n\r\n: waiting\n\ndata:{"x":1}\n\nevent: none\n\ndata: lost'
    tab = open_page(fake.url)
    found = tab.evaluate(
        """async (text) => {
          const { serverSentEvents } = await import("/page/sse.js");
          const bytes = new TextEncoder().encode(text);
          const read = async (size) => {
            const all = [];
            const body = new ReadableStream({
              start(controller) {
                for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
                controller.close();
              },
            });
            for await (const event of serverSentEvents(body)) all.push(event);
            return all;
          };
          return [await read(1), await read(2), await read(1000)];
        }""",
        text,
    )
    wanted = [{"event": "a", "data": "é1\n2"}, {"comment": "waiting"}, {"event": "message", "data": '{"x":1}'}]
    assert found == [wanted, wanted, wanted]
