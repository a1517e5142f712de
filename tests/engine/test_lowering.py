"""Which code the fingerprint of engines covers."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lira_engine import lowering
from lira_engine.lowering import lowering_fingerprint, lowering_sources

ROOT = Path(lowering.__file__).parent
# Imported by code that lowers, without a say in what comes out: errors, files, facts and runs.
NEUTRAL = {
    "accuracy", "atomic", "bundle", "check_vectors", "engine_folder", "engines", "errors", "extras",
    "llm_ort", "machine", "manifest", "ort", "ort_device", "placement", "trt.log", "verify",
}  # fmt: skip


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package's sources, to change."""
    root = shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(lowering, "_ROOT", root)
    lowering_fingerprint.cache_clear()
    yield root
    lowering_fingerprint.cache_clear()


def imported(path: Path) -> set[str]:
    """The modules of lira_engine that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {f"lira_engine.{one.name}" for one in node.names}
            found |= names if node.module == "lira_engine" else {node.module or ""}
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
