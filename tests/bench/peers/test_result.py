"""Figures from turns, and the table of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lira_bench.peers import PeerResult, table
from lira_bench.peers.interleave import (
    answer_figures,
    encoder_figures,
    language_model_figures,
    spread,
)


def turns(decode: list[float], prefill: list[float]) -> list[dict[str, Any]]:
    return [{"decode_s": d, "prefill_s": p, "tokens": []} for d, p in zip(decode, prefill, strict=True)]


def answers(seconds: list[float], decode_ms: float, prefill: float) -> list[dict[str, Any]]:
    stages = {"prefill": prefill, "decode": 0.5}
    return [
        {"seconds": s, "decode_ms": decode_ms, "prefill_tokens": 100, "new_tokens": 7, "stages": stages}
        for s in seconds
    ]


MEASURED = PeerResult(
    "genai",
    "measured",
    "onnxruntime-genai 0.18.0, int4",
    threads=2,
    rounds=3,
    ours_peak_rss_mib=1500,
    peer_peak_rss_mib=None,
    ours_idle_cores=0.0,
    peer_idle_cores=0.9,
    load="quiet",
    **language_model_figures(
        turns([1.0, 2.0, 1.0], [0.5, 0.5, 0.5]), turns([2.0, 3.0, 2.5], [1.0, 1.0, 2.0]), 256, 16
    ),
)

ENCODERS = PeerResult(
    "openvino-bf16",
    "measured",
    "openvino-genai 2026.4, bf16",
    threads=2,
    rounds=3,
    ours_peak_rss_mib=1500,
    peer_peak_rss_mib=2500,
    **encoder_figures(
        [{"stages": {"pixel_encoder": s}} for s in (1.0, 2.0, 1.0)],
        [{"stages": {"pixel_encoder": s}} for s in (0.5, 1.5, 0.6)],
        {"pixel_encoder": 0.001, "query_valid": 0.0},
        {"pixel_encoder": 0.012, "query_valid": 0.02},
    ),
)


def test_ratios_are_taken_round_by_round() -> None:
    # The machine was slow in the second round, for both: the ratio of medians would say 2.5.
    assert spread([1.0, 2.0, 1.0], [2.0, 3.0, 2.5]) == (2.0, 1.5, 2.5)


def test_turns_give_medians_and_rates() -> None:
    assert MEASURED.ours_ms_per_token == 1000 * 1.0 / 16
    assert MEASURED.peer_ms_per_token == 1000 * 2.5 / 16
    assert (MEASURED.ratio_median, MEASURED.ratio_min, MEASURED.ratio_max) == (2.0, 1.5, 2.5)
    assert (MEASURED.ours_prefill_tokens_per_s, MEASURED.peer_prefill_tokens_per_s) == (512.0, 256.0)
    assert (MEASURED.prefill_ratio_median, MEASURED.prefill_ratio_max) == (2.0, 4.0)
    assert (MEASURED.prompt_tokens, MEASURED.steps) == (256, 16)


def test_answers_give_medians_and_stages() -> None:
    found = answer_figures(answers([2.0, 4.0], 50.0, 1.0), answers([6.0, 16.0], 100.0, 4.0))
    assert found["ours_answer_s"] == 3.0 and found["peer_answer_s"] == 11.0
    assert (found["answer_ratio_median"], found["answer_ratio_min"], found["answer_ratio_max"]) == (3.5, 3, 4)
    assert (found["ratio_median"], found["prefill_ratio_median"]) == (2.0, 4.0)
    assert found["peer_prefill_tokens_per_s"] == 25.0
    assert (found["prompt_tokens"], found["steps"]) == (100, 7)
    assert found["peer_stages"] == {"prefill": 4.0, "decode": 0.5}


def test_the_table_has_a_row_per_measured_peer() -> None:
    lines = table([MEASURED]).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 10
    assert lines[2] == (
        "| genai | 62.5 | 156.2 | 2.00 (1.50 to 2.50) | 512.0 | 256.0 | 2.00 (2.00 to 4.00) | 1,500 | ? |"
    )
    how = "2 threads, 3 rounds, 256 tokens read, 16 steps a turn; the machine was quiet"
    assert f"- genai: onnxruntime-genai 0.18.0, int4; {how}" in lines


def test_encoders_have_a_table_of_their_own() -> None:
    lines = table([ENCODERS]).splitlines()
    assert ENCODERS.stage_ratios == {"pixel_encoder": [0.6, 0.5, 0.75]}  # round by round
    row = "| openvino-bf16 | pixel_encoder | 1 | 0.6 | 0.60 (0.50 to 0.75) | 1.0e-03 | 1.2e-02 "
    assert lines[2] == f"{row}| 1,500 | 2,500 |"
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert "openvino-bf16: 0.0 % of `query_valid` differ in ours, 2.0 % in the peer's." in lines
    assert (
        lines[-1]
        == "- openvino-bf16: openvino-genai 2026.4, bf16; 2 threads, 3 rounds; the machine was not observed"
    )
    both = table([ENCODERS, MEASURED])
    assert both.startswith("| peer | ms per token") and "\n\n| peer | encoder |" in both


def test_the_table_says_who_kept_a_core_busy() -> None:
    told = [line for line in table([MEASURED]).splitlines() if "busy" in line]
    assert len(told) == 1 and "genai" in told[0] and "0.9" in told[0]


def test_the_table_has_the_stages_of_whole_answers() -> None:
    result = PeerResult(
        "torch",
        "measured",
        "torch 2.9, fp32",
        threads=1,
        rounds=2,
        **answer_figures(answers([2.0, 4.0], 50.0, 1.0), answers([6.0, 16.0], 100.0, 4.0)),
    )
    text = table([result])
    assert "torch, a whole answer of 7 tokens after 100: ours 3.00 s, peer 11.00 s" in text
    assert "ratio 3.50 (3.00 to 4.00)" in text
    assert "| prefill | 1.00 | 4.00 |\n| decode | 0.50 | 0.50 |" in text


def test_the_table_says_why_a_peer_was_not_measured() -> None:
    skipped = PeerResult("torch", "skipped", "title", "name its checkpoint")
    failed = PeerResult("genai", "failed", "title", "its process ended with 3")
    assert table([skipped, failed]) == (
        "- torch: skipped, name its checkpoint\n- genai: failed, its process ended with 3\n"
    )
    both = table([skipped, MEASURED])
    assert both.startswith("| peer |") and both.endswith("\n\n- torch: skipped, name its checkpoint\n")


def test_results_go_through_json() -> None:
    for result in (MEASURED, ENCODERS):
        assert PeerResult(**json.loads(json.dumps(result.as_dict()))) == result


@pytest.mark.parametrize("results", [[], [MEASURED, MEASURED]])
def test_the_table_ends_with_one_line_break(results: list[PeerResult]) -> None:
    assert table(results).endswith("\n") and not table(results).endswith("\n\n")
