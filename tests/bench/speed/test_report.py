"""The record of a benchmark, its tables, pictures and trace, from made-up runs."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lira_bench.peers import PeerResult
from lira_bench.speed import output, pictures, report
from lira_bench.speed.benchmark import find_images, typical
from lira_bench.speed.figures import figures
from lira_bench.speed.measure import Question, Run
from lira_bench.speed.quiet import Quiet
from lira_bench.speed.record import Mark, Span
from lira_bench.speed.summary import Traffic, decode_context, record
from lira_bench.speed.trace import chrome_trace
from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError
from lira_engine.system.load import Load
from lira_engine.system.machine import Gpu, Machine
from lira_runtime.prompts import Prompt

MACHINE = Machine(
    "Linux", "Cortex-A78AE", 6, 7.4, 5.0, (Gpu("Orin", "[N/A]", "540.4.0"),), ("L4T R36",), "15W", "3.10"
)


def a_run(slower: float = 1.0) -> Run:
    """Return a run with four tokens, a mask and a region, whose spans are `slower` times as long."""
    spans, at = [], 0.0
    for stage, seconds, rows, context in (
        ("preprocess", 0.1, 0, 0),
        ("semantic_encoder", 1.0, 0, 0),
        ("semantic_encoder", 3.0, 0, 0),
        ("pixel_encoder", 2.0, 0, 0),
        ("sefe", 0.2, 0, 0),
        ("prefill", 4.0, 900, 900),
        ("prefill", 1.0, 100, 1000),
        ("decode", 0.05, 1, 1001),
        ("pixel_decoder", 0.03, 0, 0),
        ("region_encode", 1.5, 0, 0),
        ("region_prefill", 1.2, 260, 1261),
        ("decode", 0.07, 1, 1262),
    ):
        spans.append(Span(stage, at, slower * seconds, rows, context))
        at += slower * seconds
    first = slower * 11.3
    marks = [Mark("token", first, "<seg>"), Mark("token", first + slower * 0.05, "<image_id>")]
    marks += [Mark("mask", first + slower * 0.05, "mask 1"), Mark("region", first + slower * 1.6, "region")]
    marks += [Mark("token", first + slower * 2.8, "x"), Mark("token", first + slower * 2.85, "</s>")]
    rate = 2 / (slower * 0.12)
    regions = (1.6 * slower,)
    return Run(
        "a.png", (640, 480), tuple(spans), tuple(marks), 4, first, at, rate, 4 / at, regions, 1, "stop"
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(accuracy_bundle: Path) -> dict[str, Any]:
    prompt = Prompt((1,), (2,), frozenset({4}), 4, "Please segment it.")
    runs = [a_run(), a_run(2), a_run(4)]
    return record(
        runs,
        Question("refseg", prompt, "auto", (5, 6, 7, 4)),
        manifest=Bundle.open(accuracy_bundle).manifest,
        target="cpu",
        precision="int4",
        threads=None,
        cuda_calls="",
        warmup=1,
        machine=MACHINE,
        peak_rss_mib=1234,
        quiet=Quiet(None, Load(9.0, 6, 0.01, 0.0), None),
        traffic=Traffic(10**9, 2 * 10**8, 30.0),
    )


def test_the_record_has_medians_rates_and_bandwidth(made: dict[str, Any]) -> None:
    stages = made["stages"]
    assert stages["semantic_encoder"] == pytest.approx(
        {"median": 8.0, "p90": 14.4, "count": 2, "per_answer": 8.0}
    )
    assert stages["prefill"]["median"] == pytest.approx(10.0)
    assert (stages["prefill"]["tokens"], stages["prefill"]["tokens_per_s"]) == (1000, pytest.approx(100))
    # Of 50, 70, 100, 140, 200, 280 ms.
    assert stages["decode"]["median"] == pytest.approx(0.12)
    assert stages["decode"]["per_answer"] == pytest.approx(0.24)
    assert stages["region_prefill"]["tokens"] == 260
    assert made["ttft_s"]["median"] == pytest.approx(22.6)
    assert made["tpot_s"]["median"] == pytest.approx(2 * 2.85 / 3)
    assert made["itl_s"]["p50"] == pytest.approx(0.2)  # of 50, 50 and 2750 ms, times 1, 2 and 4
    assert made["itl_s"]["p99"] == pytest.approx(11.0, rel=0.05)
    assert made["tokens_per_s"]["decode"] == pytest.approx(2 / 0.24)
    assert (made["new_tokens"], made["masks"], made["regions"]) == (4, 1, 1)
    assert (made["drafted"], made["accepted"], made["tokens_per_pass"]) == (0, 0, 1.0)
    assert made["region_s"]["median"] == pytest.approx(3.2)
    assert decode_context([a_run()]) == 1131.5
    traffic = made["decode_traffic"]
    assert traffic["bytes_per_token"] == 1.2e9
    assert traffic["achieved_bandwidth"] == pytest.approx(10.0)
    assert traffic["roofline_fraction"] == pytest.approx(1 / 3)
    assert made["machine"]["power_mode"] == "15W" and made["machine"]["gpus"][0]["driver"] == "540.4.0"
    json.dumps(made)


def test_the_table_has_tokens_per_pass_where_some_were_drafted(made: dict[str, Any]) -> None:
    drafted = {**made, "drafted": 3, "accepted": 1, "tokens_per_pass": 4 / 3}
    assert ["tokens per pass, with drafts", "1.33"] in report.figure_table(drafted)[1]
    assert not any(name.startswith("tokens per pass") for name, _ in report.figure_table(made)[1])
    assert figures(drafted, Path("out"))["tokens_per_pass"] == 4 / 3


def test_the_json_figures_are_those_of_the_record(made: dict[str, Any]) -> None:
    found = figures(made, Path("out"))
    assert found["bundle"] == "lira-nano" and found["machine"]["cpu"] == "Cortex-A78AE"
    assert found["ttft_s"] == made["ttft_s"] and found["tokens_per_s"] == made["tokens_per_s"]
    assert found["stages_s"]["decode"] == pytest.approx(0.12)
    assert (found["peak_rss_mib"], found["read_bandwidth"], found["output"]) == (1234, 30.0, "out")
    assert found["achieved_bandwidth"] == pytest.approx(10.0)
    assert not {"ablation", "peers"} & found.keys()
    skipped = PeerResult("genai", "skipped", "onnxruntime-genai", "not installed").as_dict()
    found = figures({**made, "ablation": [{"name": "full"}], "peers": {"results": [skipped]}}, Path("out"))
    assert found["ablation"] == [{"name": "full"}]
    (peer,) = found["peers"]
    assert (peer["name"], peer["status"], peer["reason"]) == ("genai", "skipped", "not installed")
    assert peer["ratio_median"] is None
    json.dumps(found, allow_nan=False)


def test_an_answer_of_one_token_has_no_latency_between_tokens(accuracy_bundle: Path) -> None:
    run = a_run()
    kept = tuple(span for span in run.spans if span.stage in ("preprocess", "pixel_encoder", "prefill"))
    short = Run("a.png", (4, 3), kept, run.marks[:1], 1, 11.3, 11.3, 0.0, 1 / 11.3, (), 0, "stop")
    prompt = Prompt((1,), (2,), frozenset({4}), 1)
    made = record(
        [short],
        Question("vqa", prompt, "auto", None),
        manifest=Bundle.open(accuracy_bundle).manifest,
        target="cpu",
        precision="fp32",
        threads=2,
        cuda_calls="pycuda 2026.1",
        warmup=0,
        machine=MACHINE,
        peak_rss_mib=None,
        quiet=Quiet(None, None, None),
        traffic=Traffic(10**9, 0.0, 30.0),
    )
    assert made["cuda_calls"] == "pycuda 2026.1"
    assert made["tpot_s"] is made["itl_s"] is made["region_s"] is None
    assert "decode" not in made["stages"] and made["decode_traffic"]["roofline_fraction"] is None
    text = report.markdown(made)
    assert "inter-token" not in text and "peak memory" not in text and "per mask" not in text
    assert pictures.bars(made) and pictures.timeline(made, short)


def test_markdown_has_every_table(made: dict[str, Any]) -> None:
    text = report.markdown({**made, "synthetic": True})
    for line in (
        "### lira-nano, cpu-int4, refseg",
        "The weights are synthetic (random): times are real, answers mean nothing.",
        "The answer's tokens are given, in the form of a trained answer.",
        "This is not LIRA-2B, of which the authors report 21.6 tok/s.",
        "| decode only | 8.33 | 0.39x |",
        "| semantic encoder, 2 tiles | 8.00 s | 14.4 s | 1 | 8.00 s |",
        "| prefill, 1000 tokens | 10.0 s | 18.0 s | 1 | 10.0 s |",
        "| decode | 120 ms | 240 ms | 2 | 240 ms |",
        "| prefill | 100.0 tok/s |",
        "| peak memory | 1,234 MiB |",
        "| bandwidth, of the memory's read bandwidth | 10.0 of 30.0 GB/s, 33 % |",
    ):
        assert line in text.splitlines(), line
    assert "Cortex-A78AE, 6 cores, 7.4 GiB; Orin, [N/A], driver 540.4.0; L4T R36; power mode 15W" in text
    assert "ILVC" not in text and "peer" not in text


def test_markdown_has_ablation_and_peers(made: dict[str, Any]) -> None:
    rows = [
        {"title": "full", "new_tokens": 6, "paper_difference": None}
        | {"decode_tokens_per_s": 20.0, "end_to_end_tokens_per_s": 0.5},
        {"title": "no ILVC", "new_tokens": 6, "paper_difference": 1.3}
        | {"decode_tokens_per_s": 21.0, "end_to_end_tokens_per_s": 0.6}
        | {"decode_tokens_per_s_difference": 1.0, "end_to_end_tokens_per_s_difference": -0.1},
    ]
    text = report.markdown({**made, "ablation": rows, "peers": {"table": "| a peer |\n"}})
    assert "| full | 6 | 20.0 |  | 0.500 |  |  |" in text
    assert "| no ILVC | 6 | 21.0 | +1.000 | 0.600 | -0.100 | +1.3 |" in text
    assert text.endswith("| a peer |\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.00123, "0.0012"), (0.0834, "0.083"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert report.significant(value) == shown


def test_times_have_units() -> None:
    assert [report.seconds(value) for value in (0.00034, 0.34, 1.0, 72.5)] == [
        "0.340 ms",
        "340 ms",
        "1.00 s",
        "72.5 s",
    ]


def test_trace_opens_in_a_viewer(made: dict[str, Any]) -> None:
    run = a_run()
    events = json.loads(chrome_trace(run, "title"))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == len(run.spans)
    decode = [event for event in spans if event["name"] == "decode"]
    assert decode[0]["ts"] == pytest.approx(11.3e6) and decode[0]["dur"] == pytest.approx(5e4)
    assert decode[0]["args"] == {"rows": 1, "context": 1001}
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names[decode[0]["tid"]] == "decode"
    marks = [event for event in events if event["ph"] == "i"]
    assert [event["name"] for event in marks][:3] == ["token: <seg>", "token: <image_id>", "mask: mask 1"]
    assert {event["tid"] for event in marks} == {max(names)} and len(set(names.values())) == len(names)


def test_pictures_are_pngs_of_their_size(made: dict[str, Any]) -> None:
    for picture in (pictures.bars(made), pictures.timeline(made, a_run())):
        image = Image.open(BytesIO(picture))
        assert image.format == "PNG" and image.width > 1000 and image.height > 400
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20  # something is drawn


def test_files_appear_whole(made: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    output.check(folder, overwrite=False)
    output.write(folder, made, a_run())
    assert {file.name for file in folder.iterdir()} == {output.RECORD, *output.OTHERS}
    assert json.loads((folder / "bench.json").read_text())["format"] == "lira-bench"
    with pytest.raises(LiraError, match="holds a benchmark already: choose another -o, or add --overwrite"):
        output.check(folder, overwrite=False)
    output.check(folder, overwrite=True)
    with pytest.raises(LiraError, match="is not a folder"):
        output.check(folder / "bench.md", overwrite=True)


def test_images_of_a_folder_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "b.PNG").touch()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "notes.txt").touch()
    found = find_images(tmp_path)
    assert [path.name for path in found if isinstance(path, Path)] == ["a.jpg", "b.PNG"]
    assert find_images(tmp_path / "a.jpg") == [tmp_path / "a.jpg"]
    with pytest.raises(LiraError, match="is neither an image nor a folder of images"):
        find_images(tmp_path / "c.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LiraError, match="holds no images"):
        find_images(tmp_path / "empty")
    (generated,) = find_images(None)
    assert not isinstance(generated, Path) and generated.size == (1200, 800)


def test_the_typical_run_is_the_median() -> None:
    slow, fast, middle = a_run(4), a_run(1), a_run(2)
    assert typical([slow, fast, middle]) is middle
    assert typical([slow, fast]) is fast
