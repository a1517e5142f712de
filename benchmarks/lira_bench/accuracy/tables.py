"""An evaluation on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from lira_bench.accuracy.evaluation import Result
from lira_bench.accuracy.items import Evaluation
from lira_bench.accuracy.output import REPORT, SAMPLES

_SHOWN = 5  # reasons for leaving items out


def print_result(out: Console, result: Result) -> None:
    """Print the metrics, beside those of other engines if there are any, and the names of the files."""
    this, compared, folders = result.evaluation, result.compared, [result.folder]
    if compared is None:
        print_metrics(out, this)
    else:
        folders.append(result.folder / f"compare-{compared.name}")
        print_comparison(out, this, compared.name, compared.found)
        print_left_out(out, this)
        if compared.evaluation.left_out != this.left_out:
            print_left_out(out, compared.evaluation)
    for folder in folders:
        out.print(f"wrote {folder / REPORT} and {SAMPLES}", soft_wrap=True)
    for line in result.told:
        out.print(line, soft_wrap=True)


def print_metrics(out: Console, evaluation: Evaluation) -> None:
    """Print the metrics, and what was left out."""
    run = evaluation.run
    table = Table(box=None, pad_edge=False)
    table.add_column(_title(run))
    table.add_column(f"{run['bundle']['name']} {run['target']}-{run['precision']}", justify="right")
    for name, value in evaluation.metrics.items():
        table.add_row(name, _figure(value))
    out.print(table)
    print_left_out(out, evaluation)


def print_comparison(out: Console, this: Evaluation, other_name: str, found: dict[str, Any]) -> None:
    """Print the metrics of both, and how far they agree."""
    table = Table(box=None, pad_edge=False)
    table.add_column(_title(this.run))
    first = f"{this.run['target']}-{this.run['precision']}"
    for column in (first, other_name, "difference"):
        table.add_column(column, justify="right")
    for name, values in found["metrics"].items():
        table.add_row(name, _figure(values["this"]), _figure(values["other"]), _figure(values["delta"], "+"))
    out.print(table)
    if found["tokens"]:
        out.print(
            f"{other_name}, reading the answers of {first}, would have chosen "
            f"{100 * found['token_agreement']:.2f} % of {found['tokens']} tokens",
            soft_wrap=True,
        )
    else:
        out.print("token agreement was not measured: the bundles have different tokenizers", soft_wrap=True)
    if found["masks"]:
        out.print(f"IoU of its {found['masks']} masks with those of {first}: {found['mask_iou']:.4f}")


def print_left_out(out: Console, evaluation: Evaluation) -> None:
    """Print how many entries were left out, and the first reasons."""
    entries = evaluation.left_out
    if not entries:
        return
    out.print(f"left out: {len(entries)} of {evaluation.counts['entries']} entries", style="bold")
    for entry in entries[:_SHOWN]:
        out.print(f"  {_on_one_line(entry['item'])}: {_on_one_line(entry['reason'])}", soft_wrap=True)
    if len(entries) > _SHOWN:
        out.print(f"  and {len(entries) - _SHOWN} more, all in the report")


def _on_one_line(text: str) -> str:
    """Return the text with unprintable characters escaped: names and values come from files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _title(run: dict[str, Any]) -> str:
    return f"{run['task']}, {run['protocol']['name']}"


def _figure(value: float | int | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}d}" if isinstance(value, int) else f"{value:{sign}.4f}"
