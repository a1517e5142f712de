"""The record of a run, and its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST_OVERHEAD_MS = 3.0


def failed(record: Mapping[str, Any]) -> list[str]:
    """Return the checks that failed."""
    found = [name for name, passed in record.get("load", {}).get("checks", {}).items() if not passed]
    for row in record.get("overhead", {}).get("rows", ()):
        for way in ("whole", "stream"):
            if row[way]["more_ms"] > MOST_OVERHEAD_MS:
                more = f"{row[way]['more_ms']:.1f} ms, expected at most {MOST_OVERHEAD_MS:g}"
                found.append(f"overhead of {_name(row)} ({way}): {more}")
    return found


def markdown(record: Mapping[str, Any]) -> str:
    """Return the page."""
    machine = record["machine"]
    lines = [
        "# Serving under load",
        "",
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), "
        f"{machine['system']}, Python {machine['python']}; {record['bundle']}, {record['target']} "
        f"{record['precision']}.",
        "",
        f"    {record['reproduce'].removeprefix('reproduce: ')}",
    ]
    if "load" in record:
        lines += ["", *_load(record["load"], record["clients"])]
    if "overhead" in record:
        lines += ["", *_overhead(record["overhead"])]
    lines += ["", *(f"FAILED: {name}" for name in failed(record))]
    return "\n".join(lines).rstrip() + "\n"


def _load(found: Mapping[str, Any], clients: int) -> Iterator[str]:
    plain = found["plain_loop"]
    ratio = found["answers_per_s"] / plain["answers_per_s"]
    yield f"## {clients} clients for {found['seconds']:.0f} s"
    yield ""
    yield f"Load beside: {found['load_beside'] or 'unknown'}."
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    statuses = ", ".join(f"{count} x {status}" for status, count in found["statuses"].items())
    yield f"| requests | {found['requests']}: {statuses}; {found['left']} clients left in the middle |"
    yield f"| errors | {sum(found['errors'].values())} {'; '.join(found['errors'])} |"
    yield f"| answers | {found['answers']}, of which {found['different_answers']} differ from those alone |"
    yield f"| answers/s | {found['answers_per_s']:.1f} ({found['tokens_per_s']:.0f} tokens/s) |"
    yield (
        f"| a plain loop in Python | {plain['answers_per_s']:.1f} answers/s ({plain['tokens_per_s']:.0f} "
        f"tokens/s): the server gives {ratio:.2f} of it |"
    )
    looks = found["looks"]
    yield f"| scenes | {looks.get('kept', 0)} kept, {looks.get('new', 0)} new |"
    rss = found["rss_mib"]
    yield (
        f"| memory | {rss[0]:.0f} MiB at the start, {rss[len(rss) // 2]:.0f} in the middle, {rss[-1]:.0f} at "
        f"the end; growth from the middle {found['growth_mib']:.1f} |"
    )
    yield (
        f"| processor | server {found['server_cores']:.2f} cores, the clients' program "
        f"{found['client_cores']:.2f} |"
    )
    yield ""
    yield "| ms | answers | p50 | p95 | p99 |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    named = {"time in the queue": found["queue_ms"], "time to the first token": found["ttft_ms"]}
    for name, shares in (found["latency_ms"] | named).items():
        values = " | ".join(f"{shares.get(share, float('nan')):.0f}" for share in ("p50", "p95", "p99"))
        yield f"| {name} | {shares['count']} | {values} |"


def _overhead(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## One client, beside a plain loop"
    yield ""
    yield f"Load beside: {found['load_beside'] or 'unknown'}."
    yield ""
    yield f"Medians of {found['rounds']} rounds in turns, ms. The loop has the scene of a kept picture."
    yield ""
    yield "| question | plain loop | whole | more (p95) | ratio | stream | more (p95) | ratio |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in found["rows"]:
        cells = [_name(row), f"{row['loop_ms']:.1f}"]
        for way in ("whole", "stream"):
            part = row[way]
            cells += [
                f"{part['ms']:.1f}",
                f"{part['more_ms']:.1f} ({part['more_p95_ms']:.1f})",
                f"{part['ratio']:.2f}",
            ]
        yield f"| {' | '.join(cells)} |"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['kind']}, {'new' if row['new'] else 'kept'} picture"
