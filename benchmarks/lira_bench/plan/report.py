"""Print plans as tables, and write the table over all devices in Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from lira_bench.plan.against import Comparison
from lira_bench.plan.memory import GIB
from lira_bench.plan.planning import Plan
from lira_bench.plan.precision import StagePrecision
from lira_bench.plan.roofline import AnswerTime, StageTime
from lira_bench.plan.workload import QUERY_ROWS, TEXT_ROWS
from lira_engine.system.machine import usable_cores
from lira_runtime.timings import AUTHORS_TOKENS_PER_SECOND

_NOT_ON_TERMINALS = ("device", "mask ms", "region s")
AUTHORS = f"{AUTHORS_TOKENS_PER_SECOND:g}"


def print_plan(out: Console, plan: Plan) -> None:
    out.print(f"{plan.model}, {plan.precision}, on {plan.device.title}")
    out.print(_memory_table(plan))
    out.print(verdict(plan))
    out.print(_time_table(plan))
    out.print(_answer_table(plan))
    for line in assumptions(plan):
        out.print(line, style="dim", soft_wrap=True)


def verdict(plan: Plan) -> str:
    """Return whether the model fits, by how much, and the largest part."""
    memory = plan.memory
    largest = f"the largest part is the {memory.largest}, {_gib(memory.parts()[memory.largest])}"
    if memory.spare < 0:
        return f"does not fit: {_gib(-memory.spare)} too little; {largest}"
    if memory.rows_needed > memory.context_length:
        return f"does not fit: {memory.rows_needed} rows, the context has {memory.context_length}; {largest}"
    return f"fits, {_gib(memory.spare)} to spare; {largest}"


def assumptions(plan: Plan) -> Iterator[str]:
    """Yield the assumptions behind the figures, a line each."""
    share, device, workload = plan.efficiency, plan.device, plan.prediction.workload
    peaks = " / ".join(
        f"{name} {_figure(peak)}"
        for name, peak in (("fp32", device.fp32), ("fp16", device.fp16), ("int8", device.int8))
        if peak
    )
    if device.int4:
        peaks += f" / int4 {_figure(device.int4)}"
    yield f"device: {_figure(device.bandwidth)} GB/s; peak {peaks} x 10^12 a second (dense); {device.power} W"
    yield f"source: {device.source}; derived: {device.derived}"
    fused = "are fused" if share.fused else "cost memory traffic"
    shares = f"{share.compute:.0%} of the peak, {share.bandwidth:.0%} of the bandwidth"
    yield (
        f"efficiency ({share.basis}): {shares}; "
        f"nodes between matmuls {fused}; {share.launch * 1e6:g} us per matmul; "
        f"{share.preprocess:g} s to prepare the image"
    )
    memory = plan.memory
    yield (
        f"memory: {share.overhead_gib:g} GiB for process and libraries, {share.reserve_gib:g} GiB left to "
        f"the system; {memory.rows_held} rows of cache, {memory.rows_needed} needed with the regions"
    )
    yield (
        f"prompt: {_some(workload.tiles, 'tile')}, {workload.prompt_rows} rows, {TEXT_ROWS} of them text and "
        f"{QUERY_ROWS} at most object queries"
    )
    if device.kind == "cpu" and hasattr(os, "getloadavg") and os.getloadavg()[0] > usable_cores():
        yield (
            f"NOTE: this machine is busy (load {os.getloadavg()[0]:.1f} on {usable_cores()} cores): what was "
            "measured here is too low"
        )


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


def print_compared(out: Console, comparison: Comparison, missing: Sequence[str], source: str) -> None:
    table = Table(title=f"predicted and measured ({source})", box=None, pad_edge=False, header_style="bold")
    for name in ("", "predicted", "measured", "", "error"):
        table.add_column(name, justify="right" if name else "left")
    for one in comparison.rows:
        table.add_row(
            one.name,
            _figure(one.predicted),
            _figure(one.measured),
            one.unit,
            f"{round(100 * one.error):+d} %",
        )
    out.print(table)
    fits = [f"{share:.0%} of the {name}" for name, share in comparison.fitting.items()]
    if fits:
        out.print(f"what was measured fits {' and '.join(fits)}", soft_wrap=True)
    if missing:
        out.print(f"{source} lacks {', '.join(missing)}: not compared", soft_wrap=True)


def _memory_table(plan: Plan) -> Table:
    table = Table(title="memory", box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("")
    table.add_column("GiB", justify="right")
    table.add_column("")
    for name, size in plan.memory.parts().items():
        stage = name.removeprefix("weights of ")
        note = _kept(plan.precisions[stage]) if stage in plan.precisions else ""
        if name == "KV cache":
            note = f"{plan.memory.rows_held} rows of {plan.memory.kv_row / 1024:.0f} KiB"
        table.add_row(name, _figure(size / GIB), note)
    table.add_row("total", f"{plan.memory.total / GIB:.2f}", f"of {_gib(plan.memory.usable)} usable")
    return table


def _time_table(plan: Plan) -> Table:
    table = Table(title="time", box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in ("", "10^9 operations", "GB", "seconds", "bound by"):
        table.add_column(name, justify="left" if name in ("", "bound by") else "right")
    prediction, stages = plan.prediction, plan.prediction.stages

    def add(name: str, stage: StageTime, times: int = 1) -> None:
        table.add_row(
            name,
            _figure(times * stage.flops / 1e9),
            _figure(times * stage.bytes / 1e9),
            _figure(times * stage.seconds),
            stage.bound,
        )

    table.add_row("preprocess", "", "", _figure(prediction.preprocess), "stated")
    add(
        f"semantic_encoder, {_some(prediction.workload.tiles, 'tile')}",
        stages["semantic_encoder"],
        prediction.workload.tiles,
    )
    add("pixel_encoder", stages["pixel_encoder"])
    add("sefe", stages["sefe"])
    add(f"prefill, {prediction.workload.prompt_rows} rows", stages["prefill"])
    table.add_row("TTFT", "", "", _figure(prediction.ttft), "", style="bold")
    add("decode step", stages["decode"])
    add("mask", stages["pixel_decoder"])
    add("region: tile", stages["region_encode"])
    add("region: rows", stages["region_prefill"])
    return table


def _answer_table(plan: Plan) -> Table:
    table = Table(
        title=f"answers about a new image, beside the authors' {AUTHORS} tok/s",
        box=None,
        pad_edge=False,
        header_style="bold",
        title_justify="left",
    )
    for name in ("", "tokens", "masks", "regions", "seconds", "decode tok/s", "end-to-end tok/s"):
        table.add_column(name, justify="right" if name else "left")
    for time in plan.prediction.answers.values():
        answer = time.answer
        table.add_row(
            answer.name,
            str(answer.new_tokens),
            str(answer.masks),
            str(answer.regions),
            _figure(time.total),
            _beside(time.decode_tokens_per_second),
            _beside(time.end_to_end_tokens_per_second),
        )
    return table


def _all_title(plans: Sequence[Plan]) -> str:
    first = plans[0]
    answers = "; ".join(
        f"{time.answer.name}: {time.answer.new_tokens} tokens, {_some(time.answer.masks, 'mask')}, "
        f"{_some(time.answer.regions, 'region')}"
        for time in first.prediction.answers.values()
    )
    tiles = _some(first.prediction.workload.tiles, "tile")
    return (
        f"{first.model}, {first.precision}: predicted, {tiles}, "
        f"{first.prediction.workload.prompt_rows} prompt rows; in brackets over the authors' "
        f"{AUTHORS} tok/s; {answers}"
    )


def _all_rows(plans: Sequence[Plan]) -> tuple[list[str], list[list[str]]]:
    names = list(plans[0].prediction.answers)
    head = ["name", "device", "fits", "GiB", "TTFT s", "mask ms", "region s", "decode tok/s"]
    head += [f"{name} tok/s" for name in names]
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
                _figure(prediction.ttft),
                _figure(1000 * prediction.stages["pixel_decoder"].seconds),
                _figure(prediction.region),
                _beside(times[0].decode_tokens_per_second),
                *(_beside(time.end_to_end_tokens_per_second) for time in times),
            ]
        )
    return head, rows


def _all_notes(plans: Sequence[Plan], left_out: Sequence[str]) -> list[str]:
    kinds = {plan.device.kind: plan.efficiency for plan in plans}
    notes = [
        f"{kind}: {share.compute:.0%} of the peak, {share.bandwidth:.0%} of the bandwidth ({share.basis})."
        for kind, share in kinds.items()
    ]
    return [*notes, *left_out]


def _kept(precision: StagePrecision) -> str:
    block = f", blocks of {precision.block}" if precision.block else ""
    return f"{precision.matrices}{block}"


def _beside(rate: float) -> str:
    """Return a rate with its ratio to the authors' rate."""
    ratio = rate / AUTHORS_TOKENS_PER_SECOND
    return f"{_figure(rate)} ({ratio:.0f}x)" if ratio >= 10 else f"{_figure(rate)} ({ratio:.2g}x)"


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _figure(value: float) -> str:
    """Return three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.5f}".rstrip("0") if "e" in text else text


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
