"""Run our engines and a peer in turns A B A B, each in its own process, and compute the figures of both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from lira_bench.peers.process import Worker

Answers = list[dict[str, Any]]
SETTLE = 0.2  # seconds between turns, in which spinning threads go to sleep


def interleave(
    ours: Worker, peer: Worker, rounds: int, command: dict[str, Any], progress: Callable[[str], None]
) -> tuple[Answers, Answers]:
    """Send `command` to both in turn, `rounds` times; return the answers of both."""
    found: tuple[Answers, Answers] = ([], [])
    for number in range(rounds):
        for answers, worker in zip(found, (ours, peer), strict=True):
            progress(f"{peer.name}: round {number + 1} of {rounds}, {worker.name}")
            time.sleep(SETTLE)
            answers.append(worker.ask(**command))
    return found


def spread(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, smallest and largest ratio of the peer's time over ours, round by round."""
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def language_model_figures(ours: Answers, peer: Answers, prompt_tokens: int, steps: int) -> dict[str, Any]:
    """Return fields of a PeerResult from turns."""
    decode = [[turn["decode_s"] for turn in turns] for turns in (ours, peer)]
    prefill = [[turn["prefill_s"] for turn in turns] for turns in (ours, peer)]
    ms = [1000 * statistics.median(seconds) / steps for seconds in decode]
    rate = [prompt_tokens / statistics.median(seconds) for seconds in prefill]
    return {
        "prompt_tokens": prompt_tokens,
        "steps": steps,
        **_pair("ms_per_token", ms),
        **_ratios("ratio", spread(*decode)),
        **_pair("prefill_tokens_per_s", rate),
        **_ratios("prefill_ratio", spread(*prefill)),
    }


def encoder_figures(
    ours: Answers, peer: Answers, ours_errors: dict[str, float], peer_errors: dict[str, float]
) -> dict[str, Any]:
    """Return fields of a PeerResult from turns of encoders."""
    seconds = [[answer["stages"] for answer in answers] for answers in (ours, peer)]
    return {
        **_pair("stages", [_medians(side) for side in seconds]),
        "stage_ratios": {
            name: list(spread(*([stages[name] for stages in side] for side in seconds)))
            for name in seconds[0][0]
        },
        **_pair("errors", [ours_errors, peer_errors]),
    }


def answer_figures(ours: Answers, peer: Answers) -> dict[str, Any]:
    """Return fields of a PeerResult from whole answers."""
    both = (ours, peer)
    total = [[answer["seconds"] for answer in answers] for answers in both]
    decode = [[answer["decode_ms"] for answer in answers] for answers in both]
    prefill = [[answer["stages"]["prefill"] for answer in answers] for answers in both]
    prompt_tokens = peer[0]["prefill_tokens"]
    rate = [prompt_tokens / statistics.median(seconds) for seconds in prefill]
    stages = [_medians([answer["stages"] for answer in answers]) for answers in both]
    return {
        "prompt_tokens": prompt_tokens,
        "steps": peer[0]["new_tokens"],
        **_pair("ms_per_token", [statistics.median(ms) for ms in decode]),
        **_ratios("ratio", spread(*decode)),
        **_pair("prefill_tokens_per_s", rate),
        **_ratios("prefill_ratio", spread(*prefill)),
        **_pair("answer_s", [statistics.median(seconds) for seconds in total]),
        **_ratios("answer_ratio", spread(*total)),
        **_pair("stages", stages),
    }


def _medians(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(stages[name] for stages in turns) for name in turns[0]}


def _pair(name: str, values: Sequence[Any]) -> dict[str, Any]:
    return {f"ours_{name}": values[0], f"peer_{name}": values[1]}


def _ratios(name: str, found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((f"{name}_median", f"{name}_min", f"{name}_max"), found, strict=True))
