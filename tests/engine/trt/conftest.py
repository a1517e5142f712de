"""Stand-ins for TensorRT, on the stand-in GPU of tests/engine/cuda, and engines for them."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir
import pytest

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import Manifest, StageSpec, TensorSpec
from lira_engine.cuda.driver import DriverName, check_driver
from lira_engine.cuda.opening import open_driver
from lira_engine.system.machine import Gpu
from lira_engine.trt.flavour import Flavour, load_flavour
from lira_engine.trt.llm import TrtLlm
from lira_engine.trt.opening import TrtOpener
from lira_engine.trt.stage import TrtStage
from lira_export.config import LlmConfig

FLAVOURS = {
    "rtx": ("tensorrt-rtx", "tensorrt_rtx", "1.7.1"),
    "thor": ("tensorrt", "tensorrt", "11.4.1"),
    "orin": ("tensorrt", "tensorrt", "10.3.0"),
}
"""Target, module and version."""
DRIVERS = {"rtx": "cuda-bindings", "thor": "cuda-bindings", "orin": "pycuda"}
PAIRS = ["rtx pycuda", *(f"{flavour} {driver}" for flavour, driver in DRIVERS.items())]
MEND = "run the build again"


def _load(name: str, folder: str = "trt") -> ModuleType:
    """Import a file of tests/engine: pytest does not put test folders on the path."""
    file = Path(__file__).parent.parent / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cuda = _load("standin_cuda", "cuda")
PACKAGES: dict[str, Callable[[Any], ModuleType]] = {
    "pycuda": _load("standin_pycuda", "cuda").pycuda_driver,
    "cuda-bindings": _load("standin_bindings", "cuda").bindings_driver,
}
tensorrt = _load("standin_tensorrt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests: the stand-in's engines are portable graphs."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("portable")


class Installed:
    """A stand-in GPU, with one TensorRT and one package that makes CUDA's calls where `import` finds them."""

    def __init__(self, flavour: str, driver: DriverName, monkeypatch: pytest.MonkeyPatch) -> None:
        self.target, module, version = FLAVOURS[flavour]
        self.gpu = cuda.Gpu()
        self.trt = tensorrt.tensorrt(self.gpu, module, version)
        monkeypatch.setitem(sys.modules, module, self.trt)
        self.cuda = PACKAGES[driver](self.gpu)
        for package in ("pycuda", "cuda", "cuda.bindings"):
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, self.cuda.__name__, self.cuda)
        self.flavour: Flavour = load_flavour(self.target)
        self.driver = open_driver(driver)
        self.misuse = cuda.Misuse

    @property
    def copies(self) -> list[tuple[str, int]]:
        """Direction and bytes of each copy since the last call."""
        found, self.gpu.copies = self.gpu.copies, []
        return found

    def engine(self, file: Path, manifest: Manifest, stage: str, graph: Path, **changes: Any) -> Path:
        """Write an engine for this flavour; `changes`: see `write_engine`."""
        tensorrt.write_engine(file, manifest, stage, graph, dialect=self.flavour.dialect, **changes)
        return file

    def open_stage(self, manifest: Manifest, name: str, file: Path) -> TrtStage:
        return self._opener(manifest).stage(name, file)

    def open_llm(self, manifest: Manifest, file: Path) -> TrtLlm:
        return self._opener(manifest).llm(file)

    def _opener(self, manifest: Manifest) -> TrtOpener:
        return TrtOpener(manifest, self.flavour, self.driver, MEND)


@pytest.fixture
def installed_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Installed]:
    """Make one of PAIRS, by its name; with one driver of a flavour where only the flavour is named."""

    def install(name: str) -> Installed:
        flavour, _, driver = name.partition(" ")
        return Installed(flavour, check_driver(driver or DRIVERS[flavour]), monkeypatch)

    return install


@pytest.fixture(params=PAIRS)
def installed(request: pytest.FixtureRequest, installed_as: Callable[[str], Installed]) -> Installed:
    """Each flavour and each driver in turn."""
    return installed_as(request.param)


@pytest.fixture(params=["rtx pycuda", "rtx cuda-bindings"])
def rtx(request: pytest.FixtureRequest, installed_as: Callable[[str], Installed]) -> Installed:
    return installed_as(request.param)


TINY = LlmConfig(
    vocab_size=23,
    hidden_size=32,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
)
CONTEXT = 640


@dataclass(frozen=True)
class TinyLlm:
    """A language model whose cache is longer than a prefill chunk, and its manifest."""

    graph: Path
    manifest: Manifest


@pytest.fixture(scope="session")
def tiny_llm(
    made_bundle: Path,
    random_llm: Callable[[LlmConfig, int], ir.Model],
    tmp_path_factory: pytest.TempPathFactory,
) -> TinyLlm:
    graph = tmp_path_factory.mktemp("tiny") / "llm.onnx"
    model = random_llm(TINY, CONTEXT)
    ir.save(model, graph)
    tensors = [
        {
            value.name: TensorSpec(value.dtype.numpy().name, tuple(_size(d) for d in value.shape))
            for value in side
        }
        for side in (model.graph.inputs, model.graph.outputs)
    ]
    manifest = Bundle.open(made_bundle).manifest
    sizes = {key: value for key, value in vars(TINY).items() if key in vars(manifest.model)}
    spec = dataclasses.replace(manifest.model, **sizes, head_dim=TINY.head_dim, context_length=CONTEXT)
    stages = {**manifest.stages, "llm": StageSpec("llm.onnx", "", *tensors)}
    return TinyLlm(graph, dataclasses.replace(manifest, model=spec, stages=stages))


def _size(dimension: Any) -> int | str:
    return dimension if isinstance(dimension, int) else str(dimension.value)


@pytest.fixture
def stand_in_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that this machine's setting, and what it builds for, name."""
    for module in ("engines.setting", "trt.target"):
        monkeypatch.setattr(f"lira_engine.{module}.gpus", lambda: [Gpu("Stand-in", "1 MiB", "580.1", "8.7")])
        monkeypatch.setattr(f"lira_engine.{module}.jetson", lambda: None)
