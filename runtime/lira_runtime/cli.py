"""`lira-edge run` and `verify`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from lira_engine.cli_options import (
    BuiltTargetOption,
    BundleArgument,
    MaxTilesOption,
    PrecisionOption,
    TargetOption,
)
from lira_engine.system.terminal import plain_console, print_tables, status

if TYPE_CHECKING:
    from lira_runtime.answer import Answer, Event


def run(
    bundle: BundleArgument,
    image: Annotated[Path, typer.Option(metavar="FILE", help="JPEG, PNG, WebP or BMP.")],
    ask: Annotated[
        str | None,
        typer.Option(
            help="A question, in your own words. <image> in it is where the picture goes; other tags ([SEG], "
            "<p>, </s>) become the tokens of that name."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="A task: refseg, gcg, vqa, caption.")] = None,
    expression: Annotated[str | None, typer.Option(help="What the task is about.")] = None,
    ilvc: Annotated[
        str, typer.Option(help="Encode regions again as they are named: auto, on, off, plain.")
    ] = "auto",
    max_tiles: MaxTilesOption = None,
    target: TargetOption = "cpu",
    precision: PrecisionOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Run engines that `lira-edge verify` did not check here.")
    ] = False,
    overlay: Annotated[Path | None, typer.Option(metavar="PNG", help="Write a picture here.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the answer here.")] = None,
    attributes: Annotated[str | None, typer.Option(help="Words to rank at the mask: red,green.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: the task's, or 512.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from this share of the probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from so many tokens; 0: all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
) -> None:
    """Answer a question about an image: text, masks, timings.

    Streams the answer's text, then lists the phrases that have masks.
    """
    from lira_engine.errors import LiraError
    from lira_engine.system.atomic import atomic_write
    from lira_engine.system.text import json_text
    from lira_engine.targets import default_precision
    from lira_runtime import arguments, report
    from lira_runtime.answer import first_tokens
    from lira_runtime.images import open_image
    from lira_runtime.preprocess import check_tiles
    from lira_runtime.prompts import check_ilvc
    from lira_runtime.sampling import make_sampler
    from lira_runtime.scene import Lira

    precision = precision or default_precision(target)
    # First whatever costs little and may be wrong: nobody waits for an answer that cannot be written.
    _check_outputs(image, overlay, json)
    make_sampler(temperature, top_p, top_k, seed)
    mode = check_ilvc(ilvc)
    check_tiles("max_tiles", max_tiles)
    for option, given in (("--ask", ask), ("--expression", expression), ("--attributes", attributes)):
        arguments.optional_text(option, given)
    words = [word.strip() for word in (attributes or "").split(",") if word.strip()]
    if attributes is not None and not words:
        raise LiraError("--attributes is empty; expected words with commas between them, such as red,green")
    if task is None and expression is None and not (ask or "").strip():
        raise LiraError('the question is empty; expected --ask "...", or a --task')
    picture = open_image(image)

    out = plain_console()
    with ExitStack() as opened:
        with status(out, "opening the engines"):
            lira = opened.enter_context(Lira.open(bundle, target, precision, threads, unverified=unverified))
        question = lira.prompt(ask, task, expression, mode).question
        if words:
            first_tokens(lira.tokenizer, words)
        with status(out, "looking at the image"):
            scene = lira.look(picture, max_tiles=max_tiles)
        events = scene.stream(
            ask,
            task=task,
            expression=expression,
            ilvc=mode,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        answer = _print_stream(out, events)
        ranked = answer.attributes(words, top=len(words)) if words and answer.masks else []
        _print_phrases(out, answer)
        _print_attributes(out, ranked, bool(words))
        out.print(report.rate_line(answer.timings), soft_wrap=True)
        out.print(report.stage_line(answer.timings), style="dim", soft_wrap=True)
        if overlay:
            drawn = report.overlay(scene.image, answer, question)
            with atomic_write(overlay) as file:
                drawn.save(file, format="PNG")
            out.print(f"wrote {overlay}", soft_wrap=True)
            lacking = report.missing_signs(answer, question)
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
                "question": question,
                "task": task,
                "ilvc": ilvc,
                **report.as_dict(answer),
                "attributes": [{"word": word, "probability": share} for word, share in ranked],
            }
            with atomic_write(json) as file:
                file.write(json_text(contents).encode())
            out.print(f"wrote {json}", soft_wrap=True)


def verify(
    bundle: BundleArgument,
    target: BuiltTargetOption = "cpu",
    precision: PrecisionOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Check built engines on this machine's device: check vectors, and one short answer.

    Writes the result into the engines' build.json. Engines for GPUs do not run before that.
    """
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.targets import default_precision
    from lira_engine.verify import tables, verify_engines
    from lira_runtime.verify_answer import check_answer

    precision = precision or default_precision(target)
    with status(plain_console()) as show:
        found = verify_engines(Bundle.open(bundle), target, precision, threads, show, ask=check_answer)
    print_tables(tables(found, precision))


def _check_outputs(image: Path, overlay: Path | None, json: Path | None) -> None:
    """Raise LiraError for a path that cannot be written, or that would replace what is still needed."""
    from lira_engine.errors import LiraError

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
    from lira_runtime.answer import FinishedEvent
    from lira_runtime.events import TokenEvent

    answer: Answer | None = None
    for event in events:
        if isinstance(event, TokenEvent):
            out.file.write(event.text)
            out.file.flush()
        elif isinstance(event, FinishedEvent):
            answer = event.answer
    assert answer is not None, "a stream ends with FinishedEvent"
    if answer.text:
        out.file.write("\n")
    for phrase in answer.phrases:  # before the timings are printed, so that they count
        if phrase.mask is not None:
            _ = phrase.mask.binary
    return answer


def _print_phrases(out: Console, answer: Answer) -> None:
    from lira_runtime import draw, report

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
