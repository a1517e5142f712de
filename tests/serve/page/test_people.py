"""Keyboards, screen readers, themes, several tabs."""

from __future__ import annotations


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
        ring = """(e) => {
          const style = getComputedStyle(e.matches("[type=radio]") ? e.nextSibling : e);
          return style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2;
        }"""
        assert tab.locator(":focus").evaluate(ring), selector

    reach("#sample")
    press("Enter")
    tab.wait_for_selector("#masks:visible")
    assert tab.locator(":focus").get_attribute("value") == "gcg"
    press("ArrowRight")
    assert on("[value=refseg]") and tab.locator("#question:visible").count() == 1
    press("ArrowLeft")
    press("Control+Enter")
    tab.done()
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
    tab.take()
    tab.ask()
    tab.done()
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
    assert not [
        line for line in tree.splitlines() if line.strip().lstrip("- ") in ("button", "textbox", "combobox")
    ]
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
    tab.take()
    tab.fill("#words", "secret")
    tab.reload()
    tab.wait_for_selector("#connection[data-state=ready]")
    assert tab.evaluate(paper) == "rgb(15, 17, 21)"  # the choice stays
    assert tab.input_value("#words") == "" and tab.locator("#empty:visible").count() == 1  # nothing else does


def test_two_tabs_know_nothing_of_each_other(fake, play, open_page, three):
    fake.reply = lambda body: play.stream(play.grounded(three))
    tab = open_page(fake.url)
    other = tab.another()
    tab.take(name="one.png")
    other.take(name="two.png")
    tab.ask()
    tab.done()
    assert other.locator("#answer:visible").count() == 0 and "two.png" in other.inner_text("#picture-name")
    fake.reply = lambda body: play.stream(play.grounded(three[:1]))
    other.ask()
    other.done()
    assert other.locator(".mask-row").count() == 1 and tab.locator(".mask-row").count() == 3
