"""The fingerprint of engines covers exactly the code that decides what is in them."""

from __future__ import annotations

import ast
import inspect
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from lira_engine.engines import fingerprint
from lira_engine.engines.fingerprint import lowering_fingerprint, lowering_sources
from lira_engine.engines.target import Target
from lira_engine.targets import TARGETS

ROOT = Path(fingerprint.__file__).parent.parent
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in ROOT.rglob("*.py")}
# Imported by lowering code, without an effect on engines: errors, files, facts and runs.
NEUTRAL = {
    "bundle.bundle", "bundle.check_vectors", "bundle.graphs", "bundle.integrity", "bundle.limits",
    "bundle.manifest", "bundle.schema", "cuda.driver", "cuda.opening", "engines.accuracy",
    "engines.finding", "engines.held", "engines.near_ties",
    "engines.lowered_outputs", "engines.record", "engines.replay", "engines.runner", "engines.setting",
    "engines.usable", "errors", "open", "ort.device", "ort.package", "ort.llm", "ort.not_finite",
    "ort.opening", "ort.placement", "ort.session", "ort.stage", "ort.step_graph", "system.atomic",
    "system.cache", "system.extras", "system.load", "system.machine", "system.parent", "system.turns",
    "trt.log", "trt.opening", "trt.readiness", "trt.validity",
}  # fmt: skip


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


@pytest.fixture
def copied(tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, ...]]:
    """A copy of the package to change: the target's sources in it."""
    root = shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "_ROOT", root)
    lowering_fingerprint.cache_clear()
    yield tuple(root / path.relative_to(ROOT) for path in target.sources)
    lowering_fingerprint.cache_clear()


def imported(source: str) -> set[str]:
    """Return the modules of lira_engine that code imports, anywhere in it."""
    tree = ast.parse(source)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{one.name}" for one in node.names}
            found |= names & MODULES or {node.module or ""}
    return {name.removeprefix("lira_engine.") for name in found if name.startswith("lira_engine.")}


def test_every_covered_file_changes_the_fingerprint(copied: tuple[Path, ...], tmp_path: Path) -> None:
    seen = {lowering_fingerprint(copied)}
    for _, path in lowering_sources(copied):
        path.write_bytes(path.read_bytes() + b"\n# changed")
        lowering_fingerprint.cache_clear()
        seen.add(lowering_fingerprint(copied))
    assert len(seen) == len(lowering_sources(copied)) + 1
    (tmp_path / "copy" / "errors.py").write_text("")
    lowering_fingerprint.cache_clear()
    assert lowering_fingerprint(copied) in seen


def test_line_endings_and_folders_do_not_change_the_fingerprint(
    target: Target, copied: tuple[Path, ...]
) -> None:
    there = lowering_fingerprint(copied)
    for _, path in lowering_sources(copied):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    lowering_fingerprint.cache_clear()
    assert lowering_fingerprint(copied) == there and len(there) == 12


def test_code_of_another_target_does_not_change_the_fingerprint() -> None:
    codes = {lowering_fingerprint(target.sources) for target in TARGETS.values()}
    assert len(codes) == 3  # TensorRT and TensorRT for RTX are built by the same code
    assert len({path for target in TARGETS.values() for _, path in lowering_sources(target.sources)}) > 30


def test_the_fingerprint_covers_every_imported_module(target: Target) -> None:
    """A module that covered code imports is covered or in NEUTRAL. A target.py imports the builders of all
    its targets: only the imports of this target's `builder` method count."""
    sources = [path for _, path in lowering_sources(target.sources)]
    covered = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources}
    covered = {name.removesuffix(".__init__") for name in covered}
    assert type(target).__module__.removeprefix("lira_engine.") in covered
    needed = imported(textwrap.dedent(inspect.getsource(type(target).builder)))
    assert any(name.rpartition(".")[2].startswith("build") for name in needed)
    for path in sources:
        if path.name != "target.py" or path.parent.name == "engines":
            needed |= imported(path.read_text(encoding="utf-8"))
    assert needed - covered - NEUTRAL == set()
