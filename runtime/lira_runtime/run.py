"""One question about one image, as `lira-edge run` asks it: printed as it comes, then written to files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lira_engine.cuda.driver import DriverName
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write
from lira_engine.system.terminal import plain_console, status, warn, write
from lira_engine.system.text import json_text
from lira_runtime import draw, report
from lira_runtime.answer import Answer, Event, FinishedEvent, first_tokens
from lira_runtime.drafts import Draft
from lira_runtime.events import TokenEvent
from lira_runtime.images import open_image
from lira_runtime.lira import Lira
from lira_runtime.preprocess import check_tiles
from lira_runtime.prompts import Question


def run(
    bundle: Path,
    image: Path,
    question: Question,
    *,
    target: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
    unverified: bool = False,
    draft: Draft = "auto",
    driver: DriverName = "auto",
    max_tiles: int | None = None,
    words: Sequence[str] = (),
    overlay: Path | None = None,
    json: Path | None = None,
    console: Console | None = None,
) -> Answer:
    """Ask about an image; print the answer, its phrases and its timings; return the answer.

    target, precision, threads, unverified, draft, driver: see `Lira.open`. words: are ranked at the first
    mask.
    overlay, json: a PNG and a JSON file to write.
    Raises LiraError as `Lira.open`, `Lira.look` and `Scene.stream` do, and for files that cannot be written:
    before it opens the engines where the bundle is not needed to tell.
    """
    check_outputs(image, overlay, json)
    check_tiles("max_tiles", max_tiles)
    picture = open_image(image)
    out = console or plain_console()
    with ExitStack() as opened:
        with status(out, "opening the engines"):
            lira = opened.enter_context(
                Lira.open(
                    bundle, target, precision, threads, unverified=unverified, draft=draft, driver=driver
                )
            )
        warn(lira.engines.remark)
        text = lira.prompt(question).question
        if words:
            first_tokens(lira.tokenizer, words)
        with status(out, "looking at the image"):
            scene = lira.look(picture, max_tiles=max_tiles)
        answer = _print_stream(out, scene.stream(question))
        ranked = answer.attributes(words, top=len(words)) if words and answer.masks else []
        _print_phrases(out, answer)
        _print_attributes(out, ranked, bool(words))
        out.print(report.rate_line(answer.timings), soft_wrap=True)
        out.print(report.stage_line(answer.timings), style="dim", soft_wrap=True)
        if overlay:
            drawn = report.overlay(scene.image, answer, text)
            with atomic_write(overlay) as file:
                drawn.save(file, format="PNG")
            out.print(f"wrote {overlay}", soft_wrap=True)
            lacking = report.missing_signs(answer, text)
            if lacking is not None:
                out.print(lacking, soft_wrap=True)
        if json:
            contents = {
                "bundle": lira.manifest.name,
                "target": target,
                "precision": precision,
                "image": {
                    "file": str(image),
                    "width": picture.width,
                    "height": picture.height,
                    "tiles": scene.tiles,
                },
                "question": text,
                "task": question.task,
                "ilvc": question.ilvc,
                **report.as_dict(answer),
                "attributes": [{"word": word, "probability": share} for word, share in ranked],
            }
            with atomic_write(json) as file:
                file.write(json_text(contents).encode())
            out.print(f"wrote {json}", soft_wrap=True)
    return answer


def check_outputs(image: Path, overlay: Path | None, json: Path | None) -> None:
    """Raises LiraError for a path that cannot be written, or is that of the image or of another output."""
    if overlay is not None and overlay.suffix.lower() != ".png":
        raise LiraError(f"--overlay {overlay}: expected a name that ends in .png")
    seen = {os.path.realpath(image): "the image"}
    for option, path in (("--overlay", overlay), ("--json", json)):
        if path is None:
            continue
        if path.is_dir():
            raise LiraError(f"{option} {path} is a folder, expected the path of a file to write")
        real = os.path.realpath(path)
        if real in seen:
            raise LiraError(f"{option} {path} is also {seen[real]}; expected a path of its own")
        seen[real] = option
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise LiraError(f"{option} {path} cannot be written: {folder} is no folder that you may write to")


def _print_stream(out: Console, events: Iterator[Event]) -> Answer:
    """Print the text as it comes; return the answer with the masks of its phrases decoded."""
    answer: Answer | None = None
    for event in events:
        if isinstance(event, TokenEvent):
            write(out, event.text)
        elif isinstance(event, FinishedEvent):
            answer = event.answer
    assert answer is not None, "a stream ends with FinishedEvent"
    if answer.text:
        write(out, "\n")
    for phrase in answer.phrases:  # before the timings are printed, which count them
        if phrase.mask is not None:
            _ = phrase.mask.binary
    return answer


def _print_phrases(out: Console, answer: Answer) -> None:
    for number, phrase in report.shown_phrases(answer):
        assert phrase.mask is not None
        box = phrase.mask.box_xyxy
        where = "empty mask" if box is None else f"box {box[0]},{box[1]},{box[2]},{box[3]}"
        red, green, blue = draw.color(number)
        name = phrase.text or f"mask {number + 1}"
        square = Text("\u25a0 ", style=f"rgb({red},{green},{blue})")
        out.print(square + Text(f"{name}  (score {phrase.mask.score:.2f}, {where})"), soft_wrap=True)
    if answer.finish_reason == "length":
        out.print("(cut off: --max-new-tokens or the context is used up)", style="dim")


def _print_attributes(out: Console, ranked: list[tuple[str, float]], asked: bool) -> None:
    if asked and not ranked:
        out.print("no mask in the answer, so no words to rank", style="dim")
    longest = max((len(word) for word, _ in ranked), default=0)
    for word, probability in ranked[:5]:
        out.print(f"{word:<{longest}} {100 * probability:5.1f} % " + "\u2588" * round(40 * probability))
