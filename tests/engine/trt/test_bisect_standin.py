"""`verify --bisect` of TensorRT engines, on stand-ins for the compiler, TensorRT and the GPU: each part of a
graph is compiled, run and compared."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lira_engine.bisect import find_wrong_node
from lira_engine.build import build
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.finding import Finding
from lira_engine.engines.usable import usable_build
from lira_engine.errors import LiraError
from lira_engine.ort.cuts import Cuts
from lira_engine.system import disk
from lira_engine.targets import target_named
from lira_engine.trt.compile import Job

tensorrt = sys.modules["standin_tensorrt"]


def _falsify() -> Any:
    spec = importlib.util.spec_from_file_location("falsify", Path(__file__).parent.parent / "falsify.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["falsify"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Compiler:
    """Writes engines that run the lowered graph, or a part of it, with the faults of the GPU."""

    def __init__(self, installed: Any, bundle: Path, graphs: Path) -> None:
        self._installed, self._manifest, self._graphs = installed, Bundle.open(bundle).manifest, graphs
        self._falsify = _falsify()
        self.faults: list[Any] = []
        self.jobs: list[Job] = []

    def plant(self, node: str, **how: Any) -> None:
        self.faults.append(self._falsify.Fault(node, **how))

    def __call__(self, job: Job, phase: Callable[[str], None]) -> dict[str, int]:
        self.jobs.append(job)
        phase("build")
        graph, out = Path(job.graph), Path(job.out)
        place = self._graphs / f"{len(self.jobs)}"
        place.mkdir()
        false = self._falsify.falsify(graph, self.faults)
        shutil.copy(false, place / "graph.onnx")
        if false != graph:
            false.unlink()
        for data in graph.parent.glob("*.data"):
            shutil.copy(data, place)
        flavour = self._installed.flavour.dialect
        tensorrt.write_part_engine(out, place / "graph.onnx", job.profiles, dialect=flavour)
        if out.stem in STAGES:  # its shapes are declared
            half = any(
                one.type == "tensor(float16)"
                for one in tensorrt.session(str(place / "graph.onnx")).get_inputs()
            )
            changes = {"cache_dtype": "float16" if half else "float32", "llm_profiles": len(job.profiles)}
            self._installed.engine(out, self._manifest, out.stem, place / "graph.onnx", **changes)
        return {"peak_rss_mib": 1, "layers": 1}


@pytest.fixture(params=["rtx", "thor", "orin"])
def installed(request: pytest.FixtureRequest, installed_as: Any, stand_in_gpu: None) -> Any:
    return installed_as(request.param)


@pytest.fixture
def compiler(installed: Any, nano_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    (tmp_path / "graphs").mkdir()
    shutil.copytree(nano_bundle, tmp_path / "nano")
    found = Compiler(installed, tmp_path / "nano", tmp_path / "graphs")
    monkeypatch.setattr("lira_engine.trt.build.compile_in_process", found)
    return found


def search(root: Path, target: str, precision: str, *stages: str) -> list[Finding]:
    bundle, chosen = Bundle.open(root), target_named(target)
    build = usable_build(bundle, chosen, precision)
    with chosen.searcher(bundle, build, 1, lambda what: None) as searching:
        return [searching(stage) for stage in stages]


def lowered(root: Path, target: str, precision: str, stage: str, place: Path) -> Cuts:
    chosen = target_named(target)
    place.mkdir()
    builder = chosen.builder(Bundle.open(root), precision, chosen.options(), 1, lambda stage, phase: None)
    builder.lower(stage, place)
    return Cuts(place / f"{stage}.onnx")


def matmuls(cuts: Cuts) -> list[str]:
    return [node.name for node in cuts.nodes if node.op_type in ("MatMul", "Gemm", "Conv")]


def test_right_engines_are_right(compiler: Compiler, installed: Any, tmp_path: Path) -> None:
    bundle = tmp_path / "nano"
    folder = build(bundle, installed.target, "fp16")
    before, jobs = sorted(bundle.rglob("*")), len(compiler.jobs)
    said: list[str] = []
    findings = find_wrong_node(bundle, installed.target, "fp16", threads=1, progress=said.append)
    assert [one.stage for one in findings] == list(STAGES)
    assert not any(one.wrong or one.remark for one in findings) and max(one.error for one in findings) < 1e-3
    assert len(compiler.jobs) == jobs  # nothing was compiled
    assert sorted(bundle.rglob("*")) == before and folder.exists() and installed.gpu.used == 0
    assert "llm: lower" in said and "llm: reference" in said and "llm: device" in said


@pytest.mark.parametrize("installed", ["rtx"], indirect=True)
@pytest.mark.parametrize("stage", STAGES)
def test_a_wrong_node_is_named_after_few_compilations(
    compiler: Compiler, installed: Any, tmp_path: Path, stage: str
) -> None:
    bundle, target = tmp_path / "nano", installed.target
    cuts = lowered(bundle, target, "fp16", stage, tmp_path / "lowered")
    names = matmuls(cuts)
    node = names[2 * len(names) // 3]
    compiler.plant(node, stage=stage)
    build(bundle, target, "fp16")
    before, jobs = sorted(bundle.rglob("*")), len(compiler.jobs)
    (found,) = search(bundle, target, "fp16", stage)
    assert found.wrong is not None and [one.name for one in found.wrong.nodes] == [node]
    assert len(compiler.jobs) - jobs <= 2 * len(cuts.nodes).bit_length() + 4
    assert sorted(bundle.rglob("*")) == before and installed.gpu.used == 0


@pytest.mark.parametrize(
    "how, run",
    [
        ({"rows": 12}, "prefill of rows 0 to 11"),
        ({"rows": 1}, "decode step at row 21"),
        ({"position": 23}, "decode step at row 23"),
    ],
)
def test_a_node_that_is_wrong_in_one_pass_only(
    compiler: Compiler, installed: Any, tmp_path: Path, how: dict[str, int], run: str
) -> None:
    """Parts are compiled for the passes of the engine, and their caches are updated as its are."""
    bundle, target = tmp_path / "nano", installed.target
    precision = "fp16" if target == "tensorrt" else "int4"  # lira-nano has no int4 in blocks of 64
    node = matmuls(lowered(bundle, target, precision, "llm", tmp_path / "lowered"))[4]
    compiler.plant(node, stage="llm", **how)
    build(bundle, target, precision)
    (found,) = search(bundle, target, precision, "llm")
    assert found.wrong is not None
    assert ([one.name for one in found.wrong.nodes], found.wrong.run) == ([node], run)


def test_an_engine_file_that_differs_from_its_graph(
    compiler: Compiler, installed: Any, tmp_path: Path
) -> None:
    bundle, target = tmp_path / "nano", installed.target
    node = matmuls(lowered(bundle, target, "fp16", "sefe", tmp_path / "lowered"))[2]
    compiler.plant(node, stage="sefe")
    build(bundle, target, "fp16")
    compiler.faults.clear()
    (found,) = search(bundle, target, "fp16", "sefe")
    assert found.wrong is None and "the same graph, built again, is right on this device" in found.remark


def test_what_cannot_be_searched_is_said(
    compiler: Compiler, installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, target = tmp_path / "nano", installed.target
    build(bundle, target, "fp16")
    monkeypatch.setattr(disk, "free_bytes", lambda target: 1 << 20)
    with pytest.raises(
        LiraError, match=r"1 MiB of disk left, the search for a wrong node needs about \d+ MiB"
    ):
        find_wrong_node(bundle, target, "fp16", threads=1)


def test_a_killed_search_is_cleaned_up_by_the_next(
    compiler: Compiler, installed: Any, tmp_path: Path
) -> None:
    bundle, target = tmp_path / "nano", installed.target
    folder = build(bundle, target, "fp16")
    left = folder.parent / f".{folder.name}.partial-00000000"
    left.mkdir()
    (left / "llm.onnx").write_bytes(b"x")
    search(bundle, target, "fp16", "sefe")
    assert not left.exists()
