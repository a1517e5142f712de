"""The commands on a hollow CUDA: the checks refuse its outputs of zeros; with the checks' judgement replaced
the whole path goes through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lira_bench import bandwidth
from lira_engine.engines.record import read_build
from lira_engine.main import main

ROOT = Path(__file__).parent.parent.parent
IMAGE = str(ROOT / "assets" / "sample.png")
PRECISIONS = ("fp32", "fp16", "int4")


def lira_edge(*arguments: object) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command ends with, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"^2$"):
        main([str(argument) for argument in arguments])
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_build_refuses_wrong_outputs(
    fresh_nano: Callable[[], Path], precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = fresh_nano()
    said = refused(capsys, "build", bundle, "--target", "cuda", "--precision", precision)
    assert said.startswith("error: the cuda engine of semantic_encoder is wrong: output features differs")
    assert not (bundle / "engines" / f"cuda-{precision}").exists()


def test_verify_refuses_wrong_outputs(
    built: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = built("fp16")
    said = refused(capsys, "verify", bundle, "--target", "cuda", "--precision", "fp16")
    assert said.startswith("error: the cuda engine of semantic_encoder is wrong: output features differs")
    assert read_build(bundle / "engines" / "cuda-fp16", "").verified is None
    said = refused(capsys, "run", bundle, "--target", "cuda", "--image", IMAGE, "--task", "gcg")
    assert "were not verified" in said


@pytest.mark.usefixtures("zeros_accepted")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_whole_path(
    fresh_nano: Callable[[], Path],
    precision: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bandwidth, "_BYTES", 1 << 20)  # nothing of it is a speed here
    bundle, engines = fresh_nano(), ("--target", "cuda", "--precision", precision)
    lira_edge("build", bundle, *engines)
    lira_edge("verify", bundle, *engines)
    said = capsys.readouterr().out
    assert "CUDA" in said and "CPU" not in said.partition("largest error")[2]
    asked = ("--image", IMAGE, "--task", "refseg", "--expression", "the orange star", "--max-new-tokens", 5)
    lira_edge("run", bundle, *engines, *asked, "--json", tmp_path / "answer.json")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["timings"]["new_tokens"] == 5 and answer["finish_reason"] == "length"
    lira_edge("bench", bundle, *engines, "--forced", "--runs", 1, "--warmup", 1, "-o", tmp_path / "bench")
    measured = json.loads((tmp_path / "bench" / "bench.json").read_text())
    stages = {"preprocess", "semantic_encoder", "pixel_encoder", "sefe", "prefill", "decode", "pixel_decoder"}
    assert measured["stages"].keys() == stages and measured["masks"] == 1
    assert measured["machine"]["gpus"][0]["name"] == "Hollow H100"
    card = measured["card"]
    assert (card["name"], card["memory_mib"], card["source"]) == ("Hollow H100", 81559, "nvidia-ml-py")
    assert card["clock_mhz"]["median"] == 1755 and card["power_w"]["mean"] == 350
    assert card["throttled"] == ["power cap"] and card["energy_of"] == "card"
    assert card["peak_memory_mib"] > 1 and card["peak_memory_of"] == "process"
    assert measured["decode_traffic"]["of"] == "card" and measured["decode_traffic"]["read_bandwidth"] > 0
    model, wide = measured["model"], 4 if precision == "fp32" else 2
    row = 2 * model["num_layers"] * model["hidden_size"] * wide
    # Rows of the cache in the middle of the answer: an fp16 cache is counted as fp16.
    assert 50 < measured["decode_traffic"]["cache_bytes"] / row < 100
