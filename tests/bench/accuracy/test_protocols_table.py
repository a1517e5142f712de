"""The script that measures each rule of the authors' protocol, and its table in docs/eval.md."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from lira_bench.accuracy.protocol import STRICT, Protocol, protocol_for

ROOT = Path(__file__).parents[3]
TASKS = ("refseg", "gcg", "vqa", "attreval", "pope")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "benchmarks/compare_protocols.py"
    spec = importlib.util.spec_from_file_location("compare_protocols", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_protocols", module)
    spec.loader.exec_module(module)
    return module


def cells(text: str) -> list[list[str]]:
    """Return the cells of the table's rows; a bar inside a cell is written \\|."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    bar = "\0"
    split = [line.replace("\\|", bar).split("|")[1:-1] for line in lines]
    return [[cell.strip().replace(bar, "\\|") for cell in line] for line in split][2:]


def test_every_rule_is_measured(script: ModuleType) -> None:
    """Each field that differs in the authors' protocol is in one of the rows."""
    for task in TASKS:
        authors = protocol_for("authors", task)
        names = {field.name for field in fields(Protocol)} - {"name"}
        differing = {name for name in names if getattr(authors, name) != getattr(STRICT, name)}
        listed = {name for rule in script.RULES if rule.task == task for name in rule.fields}
        # "auto" and "on" are the same; the rules of one benchmark may keep what another one changes.
        assert differing - {"ilvc"} == listed - {"ilvc"}
    for rule in script.RULES:
        alone = script.alone(rule)
        assert alone != STRICT and alone.name == "strict"


def test_the_script_prints_a_row_per_rule(
    script: ModuleType,
    accuracy_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = [rule for rule in script.RULES if rule.task == "refseg" and rule.fields in (("bos",), ("ilvc",))]
    monkeypatch.setattr(script, "RULES", kept)
    monkeypatch.setattr(script, "FIGURES", {"refseg": script.FIGURES["refseg"]})
    monkeypatch.setattr(sys, "argv", ["compare_protocols.py", str(accuracy_bundle), "--scenes", "1"])
    script.main()
    ours, plain, bos, authors = cells(capsys.readouterr().out)
    assert ours[1] == "(all of ours)" and plain[3] == ours[3]  # it stops at <image_id>, whatever that does
    assert plain[4].startswith("0 of ") and plain[4] != bos[4] == authors[4]


def test_the_docs_page_has_the_same_rows(script: ModuleType) -> None:
    page = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8")
    part = page.partition("## The authors' protocol")[2].partition("\n## ")[0]
    shown = [line[:3] for line in cells(part[part.index("| task | strict | authors |") :])]
    wanted = []
    for task in TASKS:
        wanted.append([task, "(all of ours)", ""])
        wanted += [[task, rule.strict, rule.authors] for rule in script.RULES if rule.task == task]
        wanted.append([task, "", "(all of the authors')"])
    assert shown == wanted
