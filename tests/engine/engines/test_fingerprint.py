"""Which code the fingerprint of engines covers."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lira_engine.engines import fingerprint
from lira_engine.engines.fingerprint import lowering_fingerprint, lowering_sources

ROOT = Path(fingerprint.__file__).parent.parent
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in ROOT.rglob("*.py")}
# Imported by code that lowers, without a say in what comes out: errors, files, facts and runs.
NEUTRAL = {
    "bundle.bundle", "bundle.integrity", "bundle.manifest", "engines.accuracy", "engines.record",
    "engines.replay", "errors", "open", "ort.device", "ort.llm", "ort.placement", "ort.session",
    "system.atomic", "system.extras", "system.machine", "trt.log",
}  # fmt: skip


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package's sources, to change."""
    root = shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "_ROOT", root)
    lowering_fingerprint.cache_clear()
    yield root
    lowering_fingerprint.cache_clear()


def imported(path: Path) -> set[str]:
    """The modules of lira_engine that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{one.name}" for one in node.names}
            found |= names & MODULES or {node.module or ""}
    return {name.removeprefix("lira_engine.") for name in found if name.startswith("lira_engine.")}


def test_every_source_of_a_lowering_changes_it(copied: Path) -> None:
    seen = {lowering_fingerprint()}
    for path in lowering_sources():
        path.write_bytes(path.read_bytes() + b"\n# changed")
        lowering_fingerprint.cache_clear()
        seen.add(lowering_fingerprint())
    assert len(seen) == len(lowering_sources()) + 1 > 30
    (copied / "errors.py").write_text("")
    lowering_fingerprint.cache_clear()
    assert lowering_fingerprint() in seen


def test_line_endings_and_places_do_not(copied: Path) -> None:
    there = lowering_fingerprint()
    for path in lowering_sources():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    lowering_fingerprint.cache_clear()
    assert lowering_fingerprint() == there and len(there) == 12


def test_no_module_is_forgotten() -> None:
    """What code that lowers imports lowers, too, or is known not to."""
    covered = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in lowering_sources()}
    covered = {name.removesuffix(".__init__") for name in covered}
    needed = set().union(*(imported(path) for path in lowering_sources()))
    assert needed - covered - NEUTRAL == set()
