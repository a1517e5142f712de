"""Write the page of true sizes, docs/true-size.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import add
from statistics import median
from typing import Any

from lira_bench.peers import PEERS, PeerResult, table
from lira_bench.speed import report

Result = Mapping[str, Any]


def page(results: Mapping[str, Result], machine: Mapping[str, Any]) -> str:
    """Return the page in Markdown. Steps without results are left out."""
    named = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = [
        "# True sizes",
        "",
        "Random weights in the published shapes (`lira-edge synthesize`): speed and memory do not depend on",
        "the values. Written by `python benchmarks/true_size/run.py WORK`; one step of it: `--only STEP`.",
        "",
        f"Machine: {named}. Memory is the peak resident memory of the step's process.",
        "",
        "| step | seconds | peak memory | written |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, result in results.items():
        if "seconds" in result and "gib" in result:
            memory = f"{result['peak_rss_mib']:,} MiB"
            lines.append(f"| `{name}` | {result['seconds']:.0f} | {memory} | {result['gib']:.2f} GiB |")
    others = [one for name in PEERS if name != "torch" for one in _of_peer(results, name)]
    if others:
        results = {**results, "peers": {"results": others}}
    for title, part, write in SECTIONS:
        if part in results:
            lines += ["", f"## {title}", "", *write(results[part])]
    return "\n".join(lines) + "\n"


def _pixel_encoder(result: Result) -> Iterator[str]:
    yield "`--only pixel-encoder`: 1024 x 1024, ONNX Runtime, a process each, in turns. Straightforward: the"
    yield "reference's own steps, with 300 masks at the size of the image."
    yield ""
    yield "| graph | seconds | peak memory | beyond the weights |"
    yield "| --- | ---: | ---: | ---: |"
    titles = {
        "straightforward-defaults": "straightforward, ONNX Runtime's defaults",
        "straightforward-plain": "straightforward, without an arena",
        "straightforward": "straightforward, our settings",
        "lowered": "lowered, our settings",
    }
    for kind, title in titles.items():
        found = result[kind]
        yield (
            f"| {title} | {found['seconds']:.1f} | {found['peak_rss_mib']:,} MiB "
            f"| {found['activations_mib']:,} MiB |"
        )
    ratio = result["ratio"]
    cells = " | ".join(f"{ratio[key]:.2f}" for key in ("seconds", "peak_rss_mib", "activations_mib"))
    yield f"| ratio to the best of the others | {cells} |"


def _first_mask(result: Result) -> Iterator[str]:
    sides: Mapping[str, list[Result]] = result["sides"]
    yield "`--only first-mask --before FOLDER`: the same questions about `assets/coffee.jpg` by an older"
    yield "checkout, and by this one: int4 engines with an int8 KV cache, and those of a recipe (encoders and"
    yield "SEFE in 8 bits with measured ranges, int4 language model, fp32 cache). A process each, in turns,"
    yield f"{result['rounds']} rounds, files cached. Medians; in brackets the median of the ratios to the"
    yield "older checkout's, round by round: of times and memory, below 1 is better; of rates, above 1."
    yield ""
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lost = [run["lost_cores"] for runs in sides.values() for run in runs if run["lost_cores"] is not None]
    meanwhile = f"Others used {min(lost)} to {max(lost)} cores meanwhile." if lost else "Load unknown."
    yield f"Machine: {machine}. {meanwhile}"
    yield ""
    yield f"| | {' | '.join(sides)} |"
    yield f"| --- |{' ---: |' * len(sides)}"
    reference = next(iter(sides))
    for title, unit, read in FIGURES:
        values = {side: [read(run) for run in runs] for side, runs in sides.items()}
        cells = []
        for side, found in values.items():
            ratios = [x / y for x, y in zip(found, values[reference], strict=True)]
            ratio = "" if side == reference else f" ({median(ratios):.2f})"
            cells.append(_quantity(median(found), unit) + ratio)
        yield f"| {title} | {' | '.join(cells)} |"


FIGURES: tuple[tuple[str, str, Callable[[Result], float]], ...] = (
    ("opening", "s", lambda run: run["open"]),
    ("semantic encoder, 7 tiles", "s", lambda run: run["first"]["look"]["encode_semantic"]),
    ("pixel encoder", "s", lambda run: run["first"]["look"]["encode_pixel"]),
    ("SEFE", "s", lambda run: run["first"]["look"]["sefe"]),
    ("prefill", "s", lambda run: run["first"]["prefill"]),
    ("first token", "s", lambda run: run["first"]["ttft"]),
    ("first token of a second question", "s", lambda run: run["second"]["ttft"]),
    ("the same, of the first one's", "%", lambda run: 100 * run["second"]["ttft"] / run["first"]["ttft"]),
    ("decode", "tok/s", lambda run: run["gcg"]["decode_tokens_per_second"]),
    (
        "a region, encoder and prefill",
        "s",
        lambda run: median(map(add, run["gcg"]["regions"], run["gcg"]["region_prefill"])),
    ),
    ("referring segmentation", "tok/s", lambda run: run["first"]["end_to_end_tokens_per_second"]),
    (
        "grounded conversation, second question",
        "tok/s",
        lambda run: run["gcg"]["end_to_end_tokens_per_second"],
    ),
    ("peak memory", "MiB", lambda run: run["peak_mib"]),
)


def _parity(result: Result) -> Iterator[str]:
    yield "`--only parity`: the portable graphs in ONNX Runtime against the torch reference. Errors: largest"
    yield "difference over largest value; booleans are equal. Noise: change of the reference's outputs when"
    yield "its input changes by 1e-6."
    yield ""
    yield "| stage | output | error | noise |"
    yield "| --- | --- | ---: | ---: |"
    for stage, outputs in result["stages"].items():
        for output, error in outputs.items():
            if output.startswith("noise.") or output == "tiles":
                continue
            noise = outputs.get(f"noise.{output}")
            told = f"{noise:.1e}" if noise is not None else ""
            yield f"| {stage} | {output} | {error:.1e} | {told} |"


def _parity_llm(result: Result) -> Iterator[str]:
    yield f"`--only parity-llm`: {result['layers']} layers on {result['rows']} rows, teacher-forced:"
    yield f"smallest cosine {result['smallest_cosine']:.7f}, largest difference"
    yield f"{result['largest_error']:.1e} of values up to {result['largest_value']:.1f}."


def _bench(result: Result) -> Iterator[str]:
    task = result["task"]
    yield f"`--only bench-{task}`: `lira-edge bench` about `assets/coffee.jpg`; [bench.md](bench.md) defines"
    yield "the figures."
    yield ""
    for name, title in (("stages", "Seconds by stage"), ("timeline", "Timeline of an answer")):
        yield f"![{title}, {task}](../assets/lira-2b-{task}-{name}.png)"
        yield ""
    yield from report.markdown(result).rstrip().splitlines()


def _plan(result: Result) -> Iterator[str]:
    yield "`--only plan`: the model of [plan.md](plan.md) beside the `gcg` answer above; error: predicted /"
    yield "measured - 1."
    yield ""
    yield "| | predicted | measured | error |"
    yield "| --- | ---: | ---: | ---: |"
    for row in result["against"]["rows"]:
        shown = [_quantity(row[key], row["unit"]) for key in ("predicted", "measured")]
        yield f"| {row['name']} | {shown[0]} | {shown[1]} | {100 * row['error']:+.0f} % |"


def _quantity(value: float, unit: str) -> str:
    return report.seconds(value) if unit == "s" else f"{report.significant(value)} {unit}"


def _of_peer(results: Mapping[str, Result], name: str) -> list[dict[str, Any]]:
    return list(results.get(f"peer-{name}", {}).get("results", []))


def _peers(result: Result) -> Iterator[str]:
    yield "`--only peer-NAME`: int4 engines and a peer in turn; see [peers.md](peers.md)."
    yield ""
    yield from table([PeerResult(**one) for one in result["results"]]).rstrip().splitlines()


def _build(result: Result) -> Iterator[str]:
    yield "| stage | precision | root mean square error on the check vectors (fp32: largest) |"
    yield "| --- | --- | ---: |"
    for stage, precision in result["precisions"].items():
        yield f"| {stage} | {precision} | {max(result['errors'][stage].values()):.1e} |"


def _build_rtx(result: Result) -> Iterator[str]:
    tools = ", ".join(f"{name} {version}" for name, version in result["tools"].items())
    yield f"Compiled by {tools} on this machine, which has no GPU; not run. A process per stage."
    yield ""
    yield "| stage | precision | seconds | peak memory | engine |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for stage, precision in result["precisions"].items():
        seconds, peak, size = (result[key][stage] for key in ("stage_seconds", "peaks_mib", "engine_mib"))
        yield f"| {stage} | {precision} | {seconds:.1f} | {peak:,} MiB | {size:,.1f} MiB |"


def _lowered(result: Result) -> Iterator[str]:
    yield "`--only lowered`: LIRA-2B's stages as lowered for TensorRT, computed by ONNX Runtime on the check"
    yield "vectors: root mean square of the difference from the fp32 outputs, over that of the outputs; of"
    yield "booleans, the share that differs. No GPU kernel runs here. The dialect `cache_update` is for"
    yield "TensorRT for RTX and TensorRT from 10.15 on, `decomposed` for 10.3."
    yield ""
    yield "| stage | precision | `cache_update` | `decomposed` | worst output |"
    yield "| --- | --- | ---: | ---: | --- |"
    for argument, newer in result["stages"].items():
        stage, precision, dialect = argument.split(":")
        if dialect == "cache_update":
            older = result["stages"][f"{stage}:{precision}:decomposed"]["errors"]
            output, error = max(newer["errors"].items(), key=lambda item: item[1])
            yield f"| {stage} | {precision} | {error:.1e} | {max(older.values()):.1e} | `{output}` |"


SECTIONS = (
    ("LIRA-2B: the first mask, before and after", "first-mask", _first_mask),
    ("Pixel encoder", "pixel-encoder", _pixel_encoder),
    ("Parity", "parity", _parity),
    ("Parity of the language model", "parity-llm", _parity_llm),
    ("LIRA-2B, int4 engines", "build-lira-2b-int4", _build),
    ("LIRA-2B, int8 engines", "build-lira-2b-int8", _build),
    ("lira-nano, TensorRT for RTX, fp16", "build-rtx-lira-nano-fp16", _build_rtx),
    ("lira-nano, TensorRT for RTX, int4", "build-rtx-lira-nano-int4", _build_rtx),
    ("LIRA-2B, TensorRT for RTX, fp16", "build-rtx-lira-2b-fp16", _build_rtx),
    ("LIRA-2B, TensorRT for RTX, int4", "build-rtx-lira-2b-int4", _build_rtx),
    ("Lowered for TensorRT, beside fp32", "lowered", _lowered),
    ("LIRA-2B, int4: referring segmentation", "bench-refseg", _bench),
    ("LIRA-2B, int4: grounded conversation", "bench-gcg", _bench),
    ("Plan, beside this", "plan", _plan),
    ("Beside other runtimes", "peers", _peers),
    ("Beside the torch reference", "peer-torch", _peers),
)
