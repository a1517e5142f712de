"""The figures of a benchmark for `--json`: what a script wants of bench.json, on one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lira_bench.speed.report import Record

FORMAT = "lira-bench-figures"
FORMAT_VERSION = 1

_COPIED = (
    "bundle", "target", "precision", "task", "synthetic", "forced", "max_tiles", "runs", "new_tokens",
    "tokens_per_pass", "masks", "regions", "tokens_per_s", "ttft_s", "tpot_s", "itl_s", "total_s", "region_s",
    "peak_rss_mib", "card", "machine", "load",
)  # fmt: skip
_OF_PEER = (
    "name", "status", "reason", "ratio_median", "prefill_ratio_median", "answer_ratio_median", "stage_ratios",
    "peer_ms_per_token", "peer_prefill_tokens_per_s", "peer_answer_s", "peer_peak_rss_mib", "load",
)  # fmt: skip


def figures(record: Record, folder: Path) -> dict[str, Any]:
    """Return the figures of a record that is in `folder`. Keys as in bench.json; seconds, MiB, GB/s."""
    traffic = record["decode_traffic"]
    found: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **{key: record[key] for key in _COPIED},
        "stages_s": {name: stage["median"] for name, stage in record["stages"].items()},
        "achieved_bandwidth": traffic["achieved_bandwidth"],
        "read_bandwidth": traffic["read_bandwidth"],
        "bandwidth_of": traffic["of"],
        "output": str(folder),
    }
    if "ablation" in record:
        found["ablation"] = record["ablation"]
    if "peers" in record:
        found["peers"] = [{key: one[key] for key in _OF_PEER} for one in record["peers"]["results"]]
    return found
