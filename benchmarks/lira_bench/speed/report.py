"""The tables of a benchmark's record, for Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lira_runtime.timings import AUTHORS_TOKENS_PER_SECOND

Record = Mapping[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # column titles, rows

TITLES = {
    "preprocess": "preprocessing",
    "semantic_encoder": "semantic encoder",
    "pixel_encoder": "pixel encoder",
    "sefe": "SEFE",
    "prefill": "prefill",
    "decode": "decode",
    "pixel_decoder": "mask",
    "region_encode": "region encoder",
    "region_prefill": "region prefill",
}
AUTHORS = f"the authors report {AUTHORS_TOKENS_PER_SECOND} tok/s for LIRA-2B on referring segmentation"


def heading(record: Record) -> str:
    return f"{record['bundle']}, {record['target']}-{record['precision']}, {record['task']}"


def remarks(record: Record) -> list[str]:
    """Return what a reader must know before the figures."""
    lines = []
    if record["synthetic"]:
        lines.append("The weights are synthetic (random): times are real, answers mean nothing.")
    if record["forced"]:
        lines.append("The answer's tokens are given, in the form of a trained answer.")
    if not record["is_authors_model"]:
        lines.append(f"This is not LIRA-2B, of which the authors report {AUTHORS_TOKENS_PER_SECOND} tok/s.")
    if record["load"]["quiet"] is False:
        lines.append(f"The machine was {record['load']['text']}. It is faster than these figures.")
    card = record.get("card")  # of several engines there is none
    if card and card["throttled"]:
        lines.append(f"The card's clock was held down: {', '.join(card['throttled'])}.")
    return lines


def setting(record: Record) -> str:
    """Return one line about the machine and the request."""
    machine, images = record["machine"], record["images"]
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']:.1f} GiB"
    parts = [f"{machine['cpu']}, {machine['cores']} cores{memory}"]
    if machine["instruction_sets"]:
        parts.append(" ".join(machine["instruction_sets"]))
    card = record.get("card")
    if card and card["name"] and on_card(record):
        parts.insert(0, _card(card))  # what the answers ran on
    else:
        parts += [f"{gpu['name']}, {gpu['memory']}, driver {gpu['driver']}" for gpu in machine["gpus"]]
    parts += machine["jetson"]
    if machine["power_mode"] is not None:
        parts.append(f"power mode {machine['power_mode']}")
    parts.append(f"threads {machine['threads'] or 'as the engines choose'}")
    parts.append(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    first = images[0]
    one = f"one image of {first['width']} x {first['height']}"
    pictures = one if len(images) == 1 else f"{len(images)} images"
    tiles = "" if record["max_tiles"] is None else f" in at most {record['max_tiles']} tiles"
    parts.append(f"{record['runs']} runs after {record['warmup']} to warm up, {pictures}{tiles}")
    return "; ".join(parts)


def stage_table(record: Record) -> Table:
    rows = []
    for name, stage in record["stages"].items():
        title = TITLES[name]
        if name == "semantic_encoder":
            title += f", {stage['count']} tile{'s' if stage['count'] > 1 else ''}"
        if "tokens" in stage:
            title += f", {stage['tokens']} tokens"
        times = "1" if name in ("semantic_encoder", "prefill") else str(stage["count"])
        figures = (stage["median"], stage["p90"])
        rows.append([title, *map(seconds, figures), times, seconds(stage["per_answer"])])
    return ("stage", "median", "p90", "times", "per answer"), rows


def rate_table(record: Record) -> Table:
    rates = record["tokens_per_s"]
    rows = [
        ["decode only", f"{rates['decode']:.2f}", _of_authors(rates["decode"])],
        ["end to end, encoders and masks included", *_end_to_end(rates["end_to_end"])],
    ]
    return ("tokens per second", "measured", f"of {AUTHORS_TOKENS_PER_SECOND}"), rows


def figure_table(record: Record) -> Table:
    """Return the latencies, memory and bandwidth."""
    stages = record["stages"]
    rows = [
        ["time to first token", seconds(record["ttft_s"]["median"])],
        ["whole answer", seconds(record["total_s"]["median"])],
        ["tokens of the answer", str(record["new_tokens"])],
    ]
    if record["drafted"]:
        rows.append(["tokens per pass, with drafts", f"{record['tokens_per_pass']:.2f}"])
    if "prefill" in stages:
        rows.append(["prefill", f"{stages['prefill']['tokens_per_s']:.1f} tok/s"])
    if record["tpot_s"]:
        rows.append(["time per output token", seconds(record["tpot_s"]["median"])])
    if record["itl_s"]:
        latencies = ", ".join(seconds(value) for value in record["itl_s"].values())
        rows.append(["inter-token latency p50, p90, p99", latencies])
    if "pixel_decoder" in stages:
        rows.append(["per mask", seconds(stages["pixel_decoder"]["median"])])
    if record["region_s"]:
        region = record["region_s"]["median"] + stages["region_prefill"]["median"]
        rows.append(["per region: crop, encoder, prefill", seconds(region)])
    if record["peak_rss_mib"] is not None:
        rows.append(["peak memory", f"{record['peak_rss_mib']:,} MiB"])
    rows += _card_rows(record["card"]) if record["card"] else []
    traffic = record["decode_traffic"]
    rows.append(["weights read per token", f"{traffic['weight_bytes'] / 2**20:,.1f} MiB"])
    rows.append(["cache read per token", f"{traffic['cache_bytes'] / 2**20:,.1f} MiB"])
    if traffic["achieved_bandwidth"] is not None:
        whose = "the card's copies" if on_card(record) else "the memory's read bandwidth"
        share = f"{traffic['achieved_bandwidth']:.1f} GB/s, of what is unknown: {traffic['unknown']}"
        if traffic["read_bandwidth"] is not None:
            share = (
                f"{traffic['achieved_bandwidth']:.1f} of {traffic['read_bandwidth']:.1f} GB/s, "
                f"{100 * traffic['roofline_fraction']:.0f} %"
            )
        rows.append([f"bandwidth, of {whose}", share])
    rows.append(["the machine meanwhile", record["load"]["text"]])
    return ("", "median"), rows


def on_card(record: Record) -> bool:
    """Return whether the engines ran on a GPU."""
    return bool(record["decode_traffic"]["of"] == "card")


def _card(card: Record) -> str:
    """Return the card's name and what else is known of it."""
    parts = [card["name"]]
    if card["memory_mib"] is not None:
        parts.append(f"{card['memory_mib']:,} MiB")
    if card["compute_capability"] is not None:
        parts.append(f"compute capability {card['compute_capability']}")
    if card["driver"] is not None:
        parts.append(f"driver {card['driver']}")
    return ", ".join(parts)


def _card_rows(card: Record) -> Iterator[list[str]]:
    """Return the rows of what the card's, or the board's, sensors told."""
    if card["note"] is not None:
        yield ["the card's sensors", f"unknown: {card['note']}"]
    if card["peak_memory_mib"] is not None:
        more = "" if card["peak_memory_of"] == "process" else ": of all programs, less what they had before"
        yield [f"peak memory of the GPU{more}", f"{card['peak_memory_mib']:,} MiB"]
    for key, name in (("clock_mhz", "clock of the GPU"), ("memory_clock_mhz", "clock of its memory")):
        if card[key] is not None:
            smallest, largest = card[key]["smallest"], card[key]["largest"]
            span = "" if smallest == largest else f", {smallest:,.0f} to {largest:,.0f}"
            yield [name, f"{card[key]['median']:,.0f} MHz{span}"]
    if card["temperature_c"] is not None:
        yield ["highest temperature", f"{card['temperature_c']['largest']:.0f} °C"]
    if card["power_w"] is not None:
        power = (
            f"{significant(card['power_w']['mean'])} W, at most {significant(card['power_w']['largest'])} W"
        )
        yield [f"power of the {card['energy_of']}", power]
    if card["energy_j_per_answer"] is not None:
        yield [
            f"energy per answer, of the {card['energy_of']}",
            f"{significant(card['energy_j_per_answer'])} J",
        ]


def ablation_table(record: Record) -> Table:
    """Return the rates of each variant and its gain."""
    rows = []
    for row in record["ablation"]:
        cells = [row["title"], str(row["new_tokens"])]
        for rate in ("decode_tokens_per_s", "end_to_end_tokens_per_s"):
            cells.append(significant(row[rate]))
            difference = row.get(f"{rate}_difference")
            cells.append("" if difference is None else f"{difference:+.3f}")
        cells.append("" if row["paper_difference"] is None else f"{row['paper_difference']:+.1f}")
        rows.append(cells)
    rates = ("decode tok/s", "gain", "end to end", "gain")
    return ("", "tokens", *rates, "paper's"), rows


ABLATION_NOTES = (
    "Gain: tokens per second more than the full model, in the last line than VQA. The paper gives one figure "
    "each and does not say which rate it is.",
    "Tiles alone: no fusion and no rows of it in the prefix; the pixel encoder runs for the masks. "
    "Pixels alone: as in OMG-LLaVA, on which LIRA builds, the semantic encoder encodes regions only.",
)


def markdown(record: Record) -> str:
    """Return all tables with machine and request, as Markdown for a README."""
    return "\n".join(_markdown(record)).rstrip() + "\n"


def _markdown(record: Record) -> Iterator[str]:
    yield from (f"### {heading(record)}", "")
    for line in remarks(record):
        yield from (line, "")
    yield from (setting(record), "")
    for table in (rate_table(record), figure_table(record), stage_table(record)):
        yield from (*rows(table), "")
    yield from (AUTHORS[0].upper() + AUTHORS[1:] + ".", "")
    if "ablation" in record:
        yield from (*rows(ablation_table(record)), "")
        for note in ABLATION_NOTES:
            yield from (note, "")
    if "peers" in record:
        yield record["peers"]["table"]


def rows(table: Table, texts: int = 1) -> Iterator[str]:
    """Return the Markdown lines of a table; all columns but the first `texts` are aligned to the right."""
    columns, lines = table
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * texts}{' ---: |' * (len(columns) - texts)}"
    for line in lines:
        yield f"| {' | '.join(line)} |"


def seconds(value: float) -> str:
    """Return a time with three digits and its unit: 1.20 ms, 340 ms, 12.3 s."""
    if value < 1:
        return f"{significant(1000 * value)} ms"
    return f"{significant(value)} s"


def significant(value: float) -> str:
    """Return three significant digits, without an exponent."""
    for limit, digits in ((0.01, 4), (1, 3), (10, 2), (100, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def _of_authors(rate: float) -> str:
    return f"{rate / AUTHORS_TOKENS_PER_SECOND:.2f}x"


def _end_to_end(rate: float) -> list[str]:
    return [significant(rate), f"{significant(rate / AUTHORS_TOKENS_PER_SECOND)}x"]
