"""Turn runs into the record of a benchmark: bench.json, from which all tables and figures are made."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np

from lira_bench.speed.measure import Question, Run
from lira_bench.speed.quiet import Quiet
from lira_bench.speed.record import STAGES
from lira_engine.bundle.manifest import Manifest, ModelSpec
from lira_engine.system.cores import default_threads
from lira_engine.system.extras import tool_versions
from lira_engine.system.machine import Machine

FORMAT = "lira-bench"
FORMAT_VERSION = 1

# LIRA-2B, whose speed the authors report.
_AUTHORS_MODEL = {"family": "internlm2", "hidden_size": 2048, "num_layers": 24}

# Stages that count once per image, however many calls of their engine it takes.
_PER_IMAGE = ("semantic_encoder",)


@dataclass(frozen=True)
class Traffic:
    """What a decode step reads.

    Attributes:
        weight_bytes, cache_bytes: of the language model and its cache.
        read_bandwidth: of the memory that they are in, 10^9 bytes per second: of the host's by reading, of a
            card's by copies in it. None if it is not known. of: whose memory that is.
        unknown: why the bandwidth is not known.
    """

    weight_bytes: int
    cache_bytes: float
    read_bandwidth: float | None
    of: Literal["host", "card"] = "host"
    unknown: str | None = None


def stage_figures(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return the figures of each stage that ran.

    `median` and `p90`: seconds of one run (of the semantic encoder: of all tiles of an image). `count`: runs
    per answer (its tiles). `per_answer`: seconds per answer. `tokens`: rows of a prefill.
    """
    found: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        each = [[span for span in run.spans if span.stage == stage] for run in runs]
        if not any(each):
            continue
        sums = [sum(span.seconds for span in spans) for spans in each]
        times = sums if stage in _PER_IMAGE else [span.seconds for spans in each for span in spans]
        found[stage] = {
            "median": float(np.median(times)),
            "p90": float(np.percentile(times, 90)),
            "count": round(statistics.median(sum(span.tiles or 1 for span in spans) for spans in each)),
            "per_answer": float(np.median(sums)),
        }
        if stage == "prefill":  # image and question are two passes
            rows = [sum(span.rows for span in spans) for spans in each]
            found[stage] |= {"median": float(np.median(sums)), "p90": float(np.percentile(sums, 90))}
            found[stage]["tokens"] = round(statistics.median(rows))
            found[stage]["tokens_per_s"] = float(np.median([n / s for n, s in zip(rows, sums, strict=True)]))
        elif stage == "region_prefill":
            found[stage]["tokens"] = round(statistics.median(span.rows for spans in each for span in spans))
    return found


def record(
    runs: Sequence[Run],
    asked: Question,
    *,
    manifest: Manifest,
    target: str,
    precision: str,
    threads: int | None,
    cuda_calls: str,
    warmup: int,
    machine: Machine,
    peak_rss_mib: int | None,
    quiet: Quiet,
    traffic: Traffic,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record for JSON. Times are seconds. `card`: see `lira_bench.speed.card`."""
    gaps = [gap for run in runs for gap in run.token_gaps()]
    per_token = [statistics.mean(run.token_gaps()) for run in runs if run.token_gaps()]
    regions = [seconds for run in runs for seconds in run.regions]
    stages = stage_figures(runs)
    found: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "bundle": manifest.name,
        "model": {name: getattr(manifest.model, name) for name in _AUTHORS_MODEL},
        "is_authors_model": is_authors_model(manifest.model),
        "synthetic": bool(manifest.provenance.get("synthetic")),
        "forced": asked.forced is not None,
        "target": target,
        "precision": precision,
        "cuda_calls": cuda_calls,
        "task": asked.task,
        "question": asked.prompt.question,
        "max_tiles": asked.max_tiles,
        "images": _images(runs),
        "runs": len(runs),
        "warmup": warmup,
        "machine": {
            **asdict(machine),
            "threads": threads or default_threads(),
            "versions": versions(),
        },
        "load": quiet.as_dict(),
        "stages": stages,
        "ttft_s": _spread([run.ttft for run in runs]),
        "total_s": _spread([run.total for run in runs]),
        "tpot_s": _spread(per_token) if per_token else None,
        "itl_s": {f"p{p}": float(np.percentile(gaps, p)) for p in (50, 90, 99)} if gaps else None,
        "tokens_per_s": {
            "decode": _median(run.decode_tokens_per_s for run in runs),
            "end_to_end": _median(run.end_to_end_tokens_per_s for run in runs),
        },
        "new_tokens": round(_median(run.new_tokens for run in runs)),
        "drafted": round(_median(run.drafted for run in runs)),
        "accepted": round(_median(run.accepted for run in runs)),
        "tokens_per_pass": _median(run.tokens_per_pass for run in runs),
        "masks": round(_median(run.masks for run in runs)),
        "regions": round(_median(len(run.regions) for run in runs)),
        "region_s": _spread(regions) if regions else None,
        "finish_reasons": dict(Counter(run.finish_reason for run in runs)),
        "peak_rss_mib": peak_rss_mib,
        "card": card,
        "decode_traffic": _traffic(traffic, stages),
    }
    return found


def is_authors_model(model: ModelSpec) -> bool:
    """Return whether the model has LIRA-2B's language model."""
    return all(getattr(model, name) == value for name, value in _AUTHORS_MODEL.items())


def decode_context(runs: Sequence[Run]) -> float:
    """Return the mean number of cache rows over all decode steps; 0.0 without steps."""
    rows = [span.context for run in runs for span in run.spans if span.stage == "decode"]
    return statistics.mean(rows) if rows else 0.0


def versions() -> dict[str, str]:
    """Return the versions of this project and of the engines' libraries."""
    return {"lira-edge": metadata.version("lira-edge"), **tool_versions()}


def _traffic(traffic: Traffic, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    read = traffic.weight_bytes + traffic.cache_bytes
    found: dict[str, Any] = {
        **asdict(traffic),
        "bytes_per_token": read,
        "achieved_bandwidth": None,
        "roofline_fraction": None,
    }
    if "decode" in stages:
        achieved = read / stages["decode"]["median"] / 1e9
        found["achieved_bandwidth"] = achieved
        if traffic.read_bandwidth is not None:
            found["roofline_fraction"] = achieved / traffic.read_bandwidth
    return found


def _images(runs: Sequence[Run]) -> list[dict[str, Any]]:
    sizes = {run.image: run.size for run in runs}
    return [{"name": name, "width": width, "height": height} for name, (width, height) in sizes.items()]


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "smallest": min(values),
        "largest": max(values),
        "p90": float(np.percentile(values, 90)),
    }
