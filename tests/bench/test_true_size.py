"""The script that measures true sizes, run from another directory without a measuring step."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "true_size" / "run.py"


def test_the_page_shows_the_results_so_far(tmp_path: Path) -> None:
    results = tmp_path / "work" / "results"
    results.mkdir(parents=True)
    step = {"seconds": 34.2, "peak_rss_mib": 1552, "gib": 5.587}
    (results / "synthesize-lira-2b.json").write_text(json.dumps(step))
    words = ["work", "--only", "table", "table", "--page", "page.md"]
    for _ in range(2):  # as asked, then as the last line says
        command = [sys.executable, SCRIPT, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        wrote, again = done.stdout.splitlines()
        assert wrote == "wrote page.md"
        assert again == (
            "reproduce: python benchmarks/true_size/run.py work --only table --only table --page page.md"
        )
        words = shlex.split(again)[3:]
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert lines[0] == "# True sizes"
    assert lines[-1] == "| `synthesize-lira-2b` | 34 | 1,552 MiB | 5.59 GiB |"


def test_peers_are_measured_one_by_one_and_shown_together(tmp_path: Path) -> None:
    results = tmp_path / "work" / "results"
    results.mkdir(parents=True)
    for name in ("openvino-int8", "genai", "torch"):
        skipped = {"name": name, "status": "skipped", "reason": "not here"}
        (results / f"peer-{name}.json").write_text(json.dumps({"results": [skipped]}))
    command = [sys.executable, SCRIPT, "work", "--only", "table", "--page", "page.md"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    text = (tmp_path / "page.md").read_text()
    together, torch = text.split("## Beside other runtimes")[1].split("## Beside the torch reference")
    assert "- genai: skipped, not here\n- openvino-int8: skipped, not here\n" in together
    assert "- torch: skipped, not here\n" in torch and "genai" not in torch


def test_the_first_mask_is_shown_beside_the_older_checkout(tmp_path: Path) -> None:
    """Medians of the figures and of the ratios, round by round: they need not be each other's ratio."""

    def run(seconds: float, lost: float | None) -> dict[str, object]:
        look = {"encode_semantic": seconds, "encode_pixel": seconds, "sefe": seconds}
        answer = {
            "look": look,
            "prefill": seconds,
            "ttft": 4 * seconds,
            "regions": [seconds],
            "region_prefill": [seconds],
            "decode_tokens_per_second": 1 / seconds,
            "end_to_end_tokens_per_second": 1 / seconds,
        }
        questions = dict.fromkeys(("first", "second", "gcg"), answer)
        return {"open": seconds, **questions, "peak_mib": 1000 * seconds, "lost_cores": lost}

    results = tmp_path / "work" / "results"
    results.mkdir(parents=True)
    sides = {
        "before": [run(seconds, 0.3) for seconds in (2.0, 4.0, 8.0)],
        "after": [run(seconds, None) for seconds in (1.0, 1.0, 6.0)],
    }
    result = {"sides": sides, "machine": {"cpu": "x"}, "rounds": 3}
    (results / "first-mask.json").write_text(json.dumps(result))
    command = [sys.executable, SCRIPT, "work", "--only", "table", "--page", "page.md"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert "Machine: cpu x. Others used 0.3 to 0.3 cores meanwhile." in lines
    assert "| | before | after |" in lines
    assert "| opening | 4.00 s | 1.00 s (0.50) |" in lines
    assert "| a region, encoder and prefill | 8.00 s | 2.00 s (0.50) |" in lines
    assert "| decode | 0.250 tok/s | 1.00 tok/s (2.00) |" in lines


def test_the_first_mask_needs_an_older_checkout(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "work", "--only", "first-mask"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "name it by --before FOLDER" in done.stderr
