"""Pictures, questions and options; and when something goes wrong."""

from __future__ import annotations

import base64
import json
import threading

import pytest


def test_a_picture_can_be_dropped_and_pasted(fake, open_page, picture):
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
            [kind, name, base64.b64encode(picture()).decode()],
        )
        tab.wait_for_selector(f"#picture-name:has-text('{name}')")
    tab.click("#another")
    tab.take(b"GIF89a no picture", "cat.png")
    assert "cat.png is no picture that can be read" in tab.inner_text("#picture-problem")
    assert "pasted.png" in tab.inner_text("#picture-name")  # the one before stays
    tab.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"})
    tab.wait_for_selector("#picture-problem:has-text('a.txt is no picture')")


def test_attributes_options_and_the_timeline(fake, play, open_page, three):
    words = [{"word": "orange", "probability": 0.886}, {"word": "red", "probability": 0.114}]
    ranked = [{"mask": 0, "words": words}]
    chunks = play.grounded(three, attributes=ranked)
    fake.reply = lambda body: play.stream(chunks)
    tab = open_page(fake.url)
    tab.take()
    tab.fill("#words", "orange, red")
    tab.select_option("#tiles", "4")
    tab.uncheck("#ilvc", force=True)
    tab.ask("the star", "refseg")
    tab.done()
    wanted = {"ilvc": "off", "task": "refseg", "max_tiles": 4, "attributes": ["orange", "red"]}
    assert fake.asked[0]["lira"] == wanted
    assert tab.inner_text("#attributes .group-name") == "a star"
    assert tab.locator("#attributes li").all_inner_texts() == ["orange\n88.6 %", "red\n11.4 %"]
    widths = [box["width"] for box in (one.bounding_box() for one in tab.locator(".bar-fill").all())]
    assert widths[0] / widths[1] == pytest.approx(0.886 / 0.114, rel=0.05)
    assert "first token after 200 ms" in tab.inner_text("#timeline-words")
    rates = tab.inner_text("#rates").replace("\n", "")
    assert "50.0tok/s" in rates
    # What the person waited, as for the first token: not the engines' part of it.
    waited = next(
        json.loads(lines[6:])["lira"]["t"] for _, lines in chunks if play.has_event("timings", lines)
    )
    assert waited > 0.2 and f"total{waited * 1000:.0f}ms" in rates
    assert f"{waited * 1000:.0f} ms in all" in tab.inner_text("#timeline-words")


def test_earlier_questions_come_back_and_a_question_may_follow_up(
    fake, play, open_page, three, shapes, picture
):
    tab = open_page(fake.url)
    tab.take()
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab.ask()
    tab.done()
    fake.reply = lambda body: play.stream(play.grounded([("Red.", "", None)]))
    tab.check("#follow-up")
    tab.ask("Which colour is it?", "vqa")
    tab.done()
    said = [(message["role"], message["content"]) for message in fake.asked[1]["messages"][1:]]
    assert said == [("assistant", "a star, a ring and a dot."), ("user", "Which colour is it?")]
    assert tab.locator(".earlier-row").count() == 2 and tab.locator(".mask-row").count() == 0
    tab.click(".earlier-row >> nth=1")
    tab.wait_for_selector(".mask-row >> nth=2")
    tab.until(lambda: tab.pixel(60, 90)[2] > 200)
    tab.uncheck("#follow-up")
    tab.ask("And now?", "vqa")
    tab.done()
    assert len(fake.asked[2]["messages"]) == 1
    tab.take(picture((10, 90, 10)), "other.png")
    for place in ("#answer", "#earlier"):  # another picture, nothing asked
        tab.wait_for_selector(place, state="hidden")


def test_stop_closes_the_request_and_keeps_what_came(fake, play, open_page, three):
    gone = threading.Event()
    chunks = play.grounded(three)
    fake.reply = lambda body: play.stream([*chunks[:12], (30.0, chunks[12][1])], gone)
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
    tab.wait_for_selector(".mask-row")
    tab.keyboard.press("Escape")
    tab.done()
    assert gone.wait(5)
    assert tab.inner_text("#progress") == "Stopped here." and tab.locator(".mask-row").count() >= 1
    assert tab.inner_text("#ask-label") == "Ask" and tab.inner_text("#status") == "Stopped."


def test_a_busy_server_is_asked_again(fake, play, open_page, three):
    fake.reply = lambda body: play.refusal(503, "8 questions wait", {"Retry-After": "1"}, code="busy")
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
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
    tab.take()
    tab.ask()
    tab.done()
    assert tab.locator(".mask-row").count() == 3
    assert tab.evaluate("[Object.keys(sessionStorage), Object.keys(localStorage)]") == [["lira-key"], []]


def test_a_server_that_goes_and_comes_back(fake, play, open_page, three):
    chunks = play.grounded(three)
    fake.reply = lambda body: play.stream([*chunks[:12], (30.0, chunks[12][1])])
    tab = open_page(fake.url)
    tab.take()
    tab.ask()
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
    tab.ask()
    assert tab.inner_text("#ask-problem") == "Choose a picture first."
    tab.take()
    tab.ask(task="refseg")
    assert tab.inner_text("#ask-problem") == "Write what to segment." and fake.asked == []
    fake.reply = lambda body: play.refusal(400, "the vocabulary has no token for '<i>'; expected known words")
    tab.ask("a star", "refseg")
    tab.wait_for_selector("#ask-problem:has-text(\"no token for '<i>'\")")
    fake.reply = lambda body: play.refusal(413, "the body has 90 MB; expected at most 64 MB")
    tab.click("#ask")
    tab.wait_for_selector("#picture-problem:has-text('expected at most 64 MB')")
    error = json.dumps({"error": {"message": "the prompt has 900 tokens", "type": "invalid_request_error"}})
    fake.reply = lambda body: play.stream([(0.0, f"event: error\ndata: {error}\n\n")])
    tab.click("#ask")
    tab.wait_for_selector("#ask-problem:has-text('the prompt has 900 tokens')")
    assert tab.locator("#answer:visible").count() == 0
