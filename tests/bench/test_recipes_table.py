"""The script that writes the table of docs/calibrate.md, on few scenes and two of its rows."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "calibrate.md"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "benchmarks/compare_recipes.py"
    spec = importlib.util.spec_from_file_location("compare_recipes", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_recipes", module)
    spec.loader.exec_module(module)
    return module


def test_the_script_puts_its_table_into_the_page(
    script: ModuleType,
    nano_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nbehind\n")
    command = ["compare_recipes.py", str(nano_bundle), "--quick", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*command, "--markdown", str(page), "--threads", "1"])
    rows = [row for row in script.ROWS if row.name in ("fp32", "int4-nearest")]
    script.main(rows)
    text = page.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nbehind\n") and "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    table = {line[0]: dict(zip(cells[0][1:], line[1:], strict=True)) for line in cells[2:]}
    assert list(table) == [row.title for row in rows]
    fp32, int4 = table.values()
    assert float(int4["MiB"]) < float(fp32["MiB"])
    assert fp32["equal tokens"] == "" and 90 < float(int4["equal tokens"].removesuffix(" %")) <= 100
    assert 0.9 < float(int4["mask IoU"]) <= 1
    assert fp32["RefSeg cIoU"].endswith("%") and "[" in int4["RefSeg cIoU"]
    assert "(" in int4["prefill, ms"] and "(" not in fp32["prefill, ms"]
    assert "reproduce: python benchmarks/compare_recipes.py" in capsys.readouterr().err
    # Again: nothing is calibrated, built or asked anew.
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "recipes").rglob("*")}
    script.main(rows)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "recipes").rglob("*")} == written


def test_the_page_has_the_scripts_place_and_rows(script: ModuleType) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(script.BEGIN) == text.count(script.END) == 1
    between = text.partition(script.BEGIN)[2].partition(script.END)[0]
    if "|" in between:  # it was measured
        assert all(f"| {row.title} |" in between for row in script.ROWS)


def test_calibration_evaluation_and_training_have_scenes_of_their_own(script: ModuleType) -> None:
    assert len({script.SEED, script.CALIBRATION_SEED, script.TRAINING_SEED}) == 3
