"""Print a plan as tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from lira_bench.plan.against import Comparison
from lira_bench.plan.efficiency import BYTES
from lira_bench.plan.figures import AUTHORS, beside, figure, gib, some
from lira_bench.plan.memory import GIB
from lira_bench.plan.planning import Plan
from lira_bench.plan.roofline import StageTime
from lira_bench.plan.workload import QUERY_ROWS, TEXT_ROWS
from lira_engine.system.machine import usable_cores


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
    largest = f"the largest part is the {memory.largest}, {gib(memory.parts()[memory.largest])}"
    if memory.spare < 0:
        return f"does not fit: {gib(-memory.spare)} too little; {largest}"
    if memory.rows_needed > memory.context_length:
        return f"does not fit: {memory.rows_needed} rows, the context has {memory.context_length}; {largest}"
    return f"fits, {gib(memory.spare)} to spare; {largest}"


def assumptions(plan: Plan) -> Iterator[str]:
    """Yield the assumptions behind the figures, a line each."""
    share, device, workload = plan.efficiency, plan.device, plan.prediction.workload
    peaks = " / ".join(
        f"{name} {figure(peak)}"
        for name, peak in (("fp32", device.fp32), ("fp16", device.fp16), ("int8", device.int8))
        if peak
    )
    if device.int4:
        peaks += f" / int4 {figure(device.int4)}"
    yield f"device: {figure(device.bandwidth)} GB/s; peak {peaks} x 10^12 a second (dense); {device.power} W"
    yield f"source: {device.source}; derived: {device.derived}"
    yield f"shares of the peak, and of the bandwidth ({BYTES}), that {device.family} reaches:"
    for name, one in plan.used().items():
        yield f"{name}: {one.text()}: {one.source}"
    fused = "are fused" if share.fused else "cost memory traffic"
    yield (
        f"{device.family}: nodes between matmuls {fused}; {share.launch * 1e6:g} us per matmul; "
        f"{share.preprocess:g} s to prepare the image"
    )
    memory = plan.memory
    yield (
        f"memory: {share.overhead_gib:g} GiB for process and libraries, {share.reserve_gib:g} GiB left to "
        f"the system; {memory.rows_held} rows of cache, {memory.rows_needed} needed with the regions; a "
        f"cache of the whole context is {gib(memory.kv_capacity)}"
    )
    if memory.mapped:
        yield (
            f"on disk: {gib(memory.mapped)} of 8-bit weights for passes of many rows, mapped: page cache, "
            "which the system takes back, not counted above"
        )
    if device.watts:
        yield f"energy: ESTIMATED, at most: {device.watts[-1]:g} W, the power mode's limit, all the time"
    yield (
        f"prompt: {some(workload.tiles, 'tile')}, {workload.prompt_rows} rows, {TEXT_ROWS} of them text and "
        f"{QUERY_ROWS} at most object queries"
    )
    if device.kind == "cpu" and hasattr(os, "getloadavg") and os.getloadavg()[0] > usable_cores():
        yield (
            f"NOTE: this machine is busy (load {os.getloadavg()[0]:.1f} on {usable_cores()} cores): what was "
            "measured here is too low"
        )


def print_compared(out: Console, comparison: Comparison, missing: Sequence[str], source: str) -> None:
    table = Table(title=f"predicted and measured ({source})", box=None, pad_edge=False, header_style="bold")
    for name in ("", "predicted", "measured", "", "error"):
        table.add_column(name, justify="right" if name else "left")
    for one in comparison.rows:
        table.add_row(
            one.name,
            figure(one.predicted),
            figure(one.measured),
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
        note = plan.precisions[stage].text() if stage in plan.precisions else ""
        if name == "KV cache":
            note = f"{plan.memory.rows_held} rows of {plan.memory.kv_row / 1024:.0f} KiB"
        table.add_row(name, figure(size / GIB), note)
    table.add_row("total", f"{plan.memory.total / GIB:.2f}", f"of {gib(plan.memory.usable)} usable")
    return table


def _time_table(plan: Plan) -> Table:
    table = Table(title="time", box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in ("", "10^9 operations", "GB", "seconds", "bound by"):
        table.add_column(name, justify="left" if name in ("", "bound by") else "right")
    prediction, stages = plan.prediction, plan.prediction.stages

    def add(name: str, stage: StageTime, times: int = 1) -> None:
        table.add_row(
            name,
            figure(times * stage.flops / 1e9),
            figure(times * stage.bytes / 1e9),
            figure(times * stage.seconds),
            stage.bound,
        )

    table.add_row("preprocess", "", "", figure(prediction.preprocess), "stated")
    add(
        f"semantic_encoder, {some(prediction.workload.tiles, 'tile')}",
        stages["semantic_encoder"],
        prediction.workload.tiles,
    )
    add("pixel_encoder", stages["pixel_encoder"])
    add("sefe", stages["sefe"])
    add(f"prefill, {prediction.workload.prompt_rows} rows", stages["prefill"])
    ends = f"{figure(plan.fastest.ttft)} to {figure(plan.slowest.ttft)}"
    table.add_row("TTFT", "", "", figure(prediction.ttft), ends, style="bold")
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
    for name in (
        "",
        "tokens",
        "masks",
        "regions",
        "seconds",
        "decode tok/s",
        "end-to-end tok/s",
        "J at most",
    ):
        table.add_column(name, justify="right" if name else "left")
    for time in plan.prediction.answers.values():
        answer, joules = time.answer, plan.joules(time)
        table.add_row(
            answer.name,
            str(answer.new_tokens),
            str(answer.masks),
            str(answer.regions),
            figure(time.total),
            beside(time.decode_tokens_per_second),
            beside(time.end_to_end_tokens_per_second),
            "" if joules is None else figure(joules),
        )
    return table
