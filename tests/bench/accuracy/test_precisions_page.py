"""The script that writes docs/precisions.md, on one scene and two precisions."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_the_script_prints_every_measure_of_the_page(
    accuracy_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location(
        "compare_precisions", ROOT / "benchmarks/compare_precisions.py"
    )
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "PRECISIONS", ("fp32", "int4"))
    monkeypatch.setattr(sys, "argv", ["compare_precisions.py", str(accuracy_bundle), "--scenes", "1"])
    script.main()
    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "|" in line]
    table = {cells[0].partition(" (")[0]: cells[1:] for cells in lines}
    assert table[""] == ["fp32", "int4"]
    assert float(table["built files, MiB"][1]) < float(table["built files, MiB"][0])
    assert table["mask IoU with fp32"][0] == "" and 0.9 < float(table["mask IoU with fp32"][1]) <= 1
    for _, _, name, _ in script.MEASURES:
        assert all(value == "-" or 0 <= float(value) <= 1 for value in table[name])
    assert table["AttrEval colour at `[SEG]`, top 1"] == ["-", "-"]  # the one scene has no shape to ask about
    # What the page in docs says it measures is what the script measures.
    page = (ROOT / "docs" / "precisions.md").read_text(encoding="utf-8")
    assert all(f"| {name} (" in page for _, _, name, _ in script.MEASURES)
