"""`lira-edge bench` on lira-nano, through its command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lira_bench.plan.against import Measured
from lira_bench.speed import benchmark
from lira_bench.speed.figures import figures as speed_figures
from lira_bench.speed.request import Request
from lira_engine.main import main


def bench(*arguments: str | Path) -> int:
    """Run the command; return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_benchmark_writes_and_prints_all_figures(
    accuracy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ("--task", "gcg", "--runs", "2", "--precision", "int4", "--forced", "--threads", "1")
    assert bench(accuracy_bundle, *asked, "--ablation", "-o", out, "--json", "-") == 0
    printed = capsys.readouterr().out
    for text in ("decode only", "inter-token latency", "no SEFE, tiles", "VQA", "SEFE", " %"):
        assert text in printed, text
    record = json.loads((out / "bench.json").read_text())
    *_, wrote, again, figures = printed.splitlines()
    assert json.loads(figures) == json.loads(json.dumps(speed_figures(record, out)))
    assert again.startswith(
        f"reproduce: lira-edge bench {accuracy_bundle} --output {out} --task gcg --runs 2"
    )
    assert again.endswith("--precision int4 --threads 1 --forced --ablation --json -")
    assert wrote.startswith(f"wrote {out / 'bench.json'}")
    assert (record["task"], record["precision"], record["runs"], record["forced"]) == ("gcg", "int4", 2, True)
    assert (record["masks"], record["regions"], record["synthetic"]) == (3, 3, False)
    assert record["machine"]["threads"] == 1 and record["machine"]["versions"]["onnxruntime"]
    assert len(record["ablation"]) == 6
    assert record["decode_traffic"]["roofline_fraction"] > 0
    assert record["peak_rss_mib"] > 50
    for name in ("bench.md", "stages.png", "timeline.png", "trace.json"):
        assert (out / name).stat().st_size > 500
    # Everything that a plan compares with is there.
    measured = Measured(out / "bench.json")
    for stage, count in (("semantic_encoder", "count"), ("prefill", "tokens"), ("region_prefill", "tokens")):
        assert measured.positive(f"stages.{stage}.median") and measured.count(f"stages.{stage}.{count}")
    for key in ("ttft_s.median", "tokens_per_s.decode", "tokens_per_s.end_to_end", "stages.decode.median"):
        assert measured.positive(key)
    assert measured.count("new_tokens") and measured.text("bundle") == "lira-nano" and not measured.missing


def test_a_benchmark_from_python(accuracy_bundle: Path, tmp_path: Path) -> None:
    doing: list[str] = []
    request = Request(accuracy_bundle, tmp_path / "out", runs=1, warmup=0, precision="int4")
    result = benchmark.bench(request, doing.append)
    assert json.loads((result.folder / "bench.json").read_text()) == json.loads(json.dumps(result.record))
    assert result.typical.total == result.record["total_s"]["median"]
    assert doing == ["opening the engines", "run 1 of 1", "measuring the memory's bandwidth", "drawing"]


def test_images_of_a_folder_are_asked_about_in_turn(
    accuracy_bundle: Path, accuracy_data: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted(accuracy_data.rglob("*.png"))[:2]:
        shutil.copy(file, images)
    out = tmp_path / "out"
    asked = ("--images", images, "--runs", "1", "--warmup", "0", "--expression", "the red circle")
    assert bench(accuracy_bundle, *asked, "--max-tiles", "4", "-o", out) == 0
    record = json.loads((out / "bench.json").read_text())
    assert [image["name"] for image in record["images"]] == sorted(file.name for file in images.iterdir())
    assert record["question"] == "Please segment the red circle." and record["forced"] is False
    assert record["runs"] == 2  # one for each image
    # Square images: 2 x 2 tiles and the whole, where the bundle has one tile.
    assert record["max_tiles"] == 4 and record["stages"]["semantic_encoder"]["count"] == 5
    assert "2 images in at most 4 tiles" in (out / "bench.md").read_text()


def test_random_weights_get_given_tokens(
    accuracy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(accuracy_bundle, bundle)
    manifest = json.loads((bundle / "lira.json").read_text())
    manifest["provenance"]["synthetic"] = True
    (bundle / "lira.json").write_text(json.dumps(manifest))
    out = tmp_path / "out"
    found = tmp_path / "figures.json"
    assert bench(bundle, "--runs", "1", "--warmup", "0", "-o", out, "--json", found) == 0
    printed = capsys.readouterr().out
    assert json.loads(found.read_text())["synthetic"] is True
    *_, wrote, again = printed.splitlines()
    assert wrote == f"wrote {found}" and again.endswith(f"--json {found}")
    assert "The weights are synthetic (random)" in printed and "The answer's tokens are given" in printed
    record = json.loads((out / "bench.json").read_text())
    assert record["synthetic"] is record["forced"] is True and record["masks"] == 1
    assert "synthetic (random)" in (out / "bench.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "caption"), "--task is 'caption', expected one of refseg, gcg, vqa"),
        (("--peer", "vllm"), "no peer is called 'vllm': expected some of torch, optimum, genai"),
        (("--images", "nowhere"), "nowhere is neither an image nor a folder of images"),
        (("--precision", "int8"), "lira-edge build"),
        (("--driver", "cupy"), "the driver is 'cupy'; expected auto, pycuda or cuda-bindings"),
        (("--driver", "pycuda"), "target cpu takes no driver, onnxruntime needs none: leave --driver out"),
        (("--task", "gcg", "--expression", "x"), "task gcg has its own question"),
        (("--peer", "genai", "--max-tiles", "4"), "--max-tiles and --peer"),
        (("--peer", "genai", "--target", "cuda"), "peers run on the CPU; found target 'cuda'"),
        (("--json", "."), "--json . is a folder"),
    ],
)
def test_wrong_options_are_refused_before_measuring(
    accuracy_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert bench(accuracy_bundle, *arguments, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "bench.json").exists()


def test_damaged_images_and_existing_results_are_refused(
    accuracy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    assert bench(accuracy_bundle, "--images", tmp_path, "-o", tmp_path / "out") == 2
    assert "a.png" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bench.json").write_text("{}")
    assert bench(accuracy_bundle, "-o", tmp_path / "out") == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert bench(tmp_path, "-o", tmp_path / "other") == 2
    assert "is not a bundle" in capsys.readouterr().err
