"""The table over all devices: on a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lira_bench.plan.figures import AUTHORS, beside, figure, some
from lira_bench.plan.memory import GIB
from lira_bench.plan.planning import Plan
from lira_bench.plan.roofline import AnswerTime

_NOT_ON_TERMINALS = ("device", "from", "to", "mask ms", "region s", "refseg J")


def print_all(out: Console, plans: Sequence[Plan], left_out: Sequence[str]) -> None:
    table = Table(title=_all_title(plans), box=None, pad_edge=False, header_style="bold")
    head, rows = _all_rows(plans)
    shown = [i for i, name in enumerate(head) if name not in _NOT_ON_TERMINALS]
    for i in shown:
        table.add_column(head[i], justify="left" if i < 3 else "right")
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    out.print(table)
    for line in _all_notes(plans, left_out):
        out.print(line, style="dim", soft_wrap=True)


def markdown(plans: Sequence[Plan], left_out: Sequence[str]) -> str:
    """Return the table over all devices."""
    head, rows = _all_rows(plans)
    lines = [f"**{_all_title(plans)}**", "", "| " + " | ".join(head) + " |"]
    lines.append("| --- | --- | --- |" + " ---: |" * (len(head) - 3))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *_all_notes(plans, left_out)]
    return "\n".join(lines) + "\n"


def _all_title(plans: Sequence[Plan]) -> str:
    first = plans[0]
    answers = "; ".join(
        f"{time.answer.name}: {time.answer.new_tokens} tokens, {some(time.answer.masks, 'mask')}, "
        f"{some(time.answer.regions, 'region')}"
        for time in first.prediction.answers.values()
    )
    tiles = some(first.prediction.workload.tiles, "tile")
    return (
        f"{first.model}, {first.precision}: predicted, {tiles}, "
        f"{first.prediction.workload.prompt_rows} prompt rows; in brackets over the authors' "
        f"{AUTHORS} tok/s; {answers}"
    )


def _all_rows(plans: Sequence[Plan]) -> tuple[list[str], list[list[str]]]:
    names = list(plans[0].prediction.answers)
    head = ["name", "device", "fits", "GiB", "TTFT s", "from", "to", "mask ms", "region s", "decode tok/s"]
    for name in names:
        head += [f"{name} tok/s", f"{name} J"]
    rows = []
    for plan in plans:
        memory, prediction = plan.memory, plan.prediction
        times: list[AnswerTime] = [prediction.answers[name] for name in names]
        rows.append(
            [
                plan.device.name,
                plan.device.title,
                "yes" if memory.fits else "no",
                f"{memory.total / GIB:.1f} of {memory.usable / GIB:.1f}",
                figure(prediction.ttft),
                figure(plan.fastest.ttft),
                figure(plan.slowest.ttft),
                figure(1000 * prediction.stages["pixel_decoder"].seconds),
                figure(prediction.region),
                beside(times[0].decode_tokens_per_second),
                *(text for time in times for text in _answer(plan, time)),
            ]
        )
    return head, rows


def _answer(plan: Plan, time: AnswerTime) -> tuple[str, str]:
    joules = plan.joules(time)
    return beside(time.end_to_end_tokens_per_second), "" if joules is None else figure(joules)


def _all_notes(plans: Sequence[Plan], left_out: Sequence[str]) -> list[str]:
    notes = ["from, to: with all shares at the ends of their ranges. J: at most, an estimate: limit x time."]
    notes += dict.fromkeys(
        f"{one.device.family}: guessed: {', '.join(one.guesses()) or 'nothing'}." for one in plans
    )
    return [*notes, *left_out]
