"""The script that measures true sizes, run from another directory without a measuring step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "true_size" / "run.py"


def test_the_page_shows_the_results_so_far(tmp_path: Path) -> None:
    results = tmp_path / "work" / "results"
    results.mkdir(parents=True)
    step = {"seconds": 34.2, "peak_rss_mib": 1552, "gib": 5.587}
    (results / "synthesize-lira-2b.json").write_text(json.dumps(step))
    command = [sys.executable, SCRIPT, "work", "--only", "table", "--page", "page.md"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert lines[0] == "# True sizes"
    assert lines[-1] == "| `synthesize-lira-2b` | 34 | 1,552 MiB | 5.59 GiB |"
    assert done.stdout.splitlines() == [
        "wrote page.md",
        "reproduce: python benchmarks/true_size/run.py work --only table --page page.md",
    ]
