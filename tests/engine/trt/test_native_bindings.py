"""The stand-ins have the names, and the argument names, of the real bindings."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lira_engine.errors import LiraError
from lira_engine.trt.engine import TrtEngine
from lira_engine.trt.flavour import load_flavour

MEND = "run the build again"
REAL = {"Engine": "ICudaEngine", "Context": "IExecutionContext", "Config": "IRuntimeConfig"}
OWN = {"create_execution_context": ("strategy", "runtime_config")}
"""Overloads, which the stand-in has as one function."""
# What the stand-in's classes have for the tests.
NOT_BINDINGS = {"is_input", "dtype", "need"}


@pytest.fixture(params=["tensorrt_rtx", "tensorrt"])
def real(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    yield pytest.importorskip(request.param)


def arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


def test_real_classes_have_what_the_stand_in_has(real: ModuleType) -> None:
    standin = sys.modules["standin_tensorrt"]
    classes = {name: getattr(standin, name) for name in REAL}
    names = dict(REAL)
    if real.__name__ == "tensorrt_rtx":
        classes["RuntimeCache"], names["RuntimeCache"] = standin.RuntimeCache, "IRuntimeCache"
    compared = 0
    for name, ours in classes.items():
        theirs = getattr(real, names[name])
        for key, value in vars(ours).items():
            if key.startswith("_") or key in NOT_BINDINGS:
                continue
            if real.__name__ == "tensorrt" and "runtime_cache" in key:
                continue  # TensorRT compiles when it builds
            assert hasattr(theirs, key), f"{names[name]} has no {key}"
            if inspect.isfunction(value):
                documented = getattr(theirs, key).__doc__ or ""
                wanted = set(OWN.get(key, ())) or arguments(value)
                missing = [argument for argument in wanted if f"{argument}:" not in documented]
                assert not missing, f"{names[name]}.{key} takes no {missing}: {documented}"
            compared += 1
    assert compared > 20


def test_the_function_that_loads_plugins_exists(real: ModuleType, rtx: Any) -> None:
    documented = real.init_libnvinfer_plugins.__doc__ or ""
    assert list(inspect.signature(rtx.trt.init_libnvinfer_plugins).parameters) == ["logger", "namespace"]
    assert documented.startswith("init_libnvinfer_plugins(logger: ") and documented.count(": ") > 1
    assert real.init_libnvinfer_plugins(real.Logger(), "") is True


def test_the_function_that_limits_the_workspace_exists(real: ModuleType) -> None:
    documented = real.IBuilderConfig.set_memory_pool_limit.__doc__ or ""
    assert "pool: " in documented and "pool_size: " in documented
    assert hasattr(real.MemoryPoolType, "WORKSPACE")


def test_tensorrt_for_rtx_can_be_asked_why_an_engine_does_not_load(real: ModuleType, rtx: Any) -> None:
    """TensorRT cannot. Without a GPU it knows what is no engine, by the file alone."""
    assert hasattr(real.Runtime, "get_engine_validity") == (real.__name__ == "tensorrt_rtx")
    if real.__name__ == "tensorrt_rtx":
        for name in ("EngineValidity", "EngineInvalidityDiagnostics"):
            ours, theirs = (getattr(one, name).__members__ for one in (rtx.trt, real))
            assert ours.keys() == theirs.keys()
        bits = real.EngineInvalidityDiagnostics.__members__
        assert {name: int(bit) for name, bit in bits.items()} == {
            name: int(bit) for name, bit in rtx.trt.EngineInvalidityDiagnostics.__members__.items()
        }
        found = real.Runtime(real.Logger(real.Logger.INTERNAL_ERROR)).get_engine_validity(b"no engine" * 99)
        assert found == (real.EngineValidity.INVALID, int(bits["MALFORMED_ENGINE"]))


def test_real_enumerations_have_what_the_stand_in_has(real: ModuleType, rtx: Any) -> None:
    names = ["DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy"]
    if real.__name__ == "tensorrt_rtx":
        names += ["CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"]
        for name in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"):
            assert getattr(real.IRuntimeConfig, name).fset is not None
    for name in names:
        assert set(getattr(rtx.trt, name).__members__) <= set(getattr(real, name).__members__)


def test_the_real_library_refuses_a_bad_file_in_one_line(installed_as: Any, tmp_path: Path) -> None:
    """With our logger, from a mapped file. Without a GPU it refuses any file, with one what is no engine."""
    pytest.importorskip("tensorrt_rtx")
    driver = installed_as("orin").driver  # does not replace the real TensorRT for RTX
    flavour = load_flavour("tensorrt-rtx")
    file = tmp_path / "sefe.engine"
    file.write_bytes(b"no engine" * 99)
    with driver.current(), pytest.raises(LiraError) as caught:
        TrtEngine(file, flavour, driver, MEND)
    text = str(caught.value)
    assert text.startswith(f"{file} does not load with {flavour.name} on Stand-in sm_87 (")
    assert text.endswith(f"): it is not an engine, or damaged; {MEND}")
    assert "it does not say why" not in text and "\n" not in text and text.endswith(MEND)
