"""ONNX Runtime comes in several distributions: each is enough."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lira_engine.engines.setting import cpu_setting, gpu_setting
from lira_engine.ort.target import CpuTarget, CudaTarget
from lira_engine.system import extras
from lira_engine.system.machine import Gpu

Installed = Callable[..., None]


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """only(name=version): these distributions are installed, each brings the package onnxruntime."""

    def install(**versions: str) -> None:
        for name, version in versions.items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
            (folder / "METADATA").write_text(text)
            (folder / "top_level.txt").write_text("onnxruntime\n")
        extras.extras()  # of the real distribution
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    extras.onnxruntimes.cache_clear()
    yield install
    extras.onnxruntimes.cache_clear()


@pytest.mark.parametrize(
    "name", ["onnxruntime", "onnxruntime_gpu", "ort_nightly_gpu", "onnxruntime_directml"]
)
def test_any_distribution_of_onnxruntime_runs_cpu_engines(only: Installed, name: str) -> None:
    only(**{name: "1.31.1"})
    distribution = name.replace("_", "-")
    assert extras.onnxruntimes() == (distribution,)
    assert extras.missing_packages("cpu") == []
    assert extras.tool_versions().keys() == {"python", distribution}
    assert cpu_setting(CpuTarget.runtimes).runtime == f"{distribution} 1.31.1"


def test_without_onnxruntime_the_extras_lack_it(only: Installed) -> None:
    only()
    assert extras.missing_packages("cpu") == ["onnxruntime"]
    assert "onnxruntime-gpu" in extras.missing_packages("cuda")


def test_the_wheel_for_cuda_is_named_first_for_cuda(only: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    only(onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    monkeypatch.setattr("lira_engine.engines.setting.jetson", lambda: None)
    monkeypatch.setattr("lira_engine.engines.setting.gpus", lambda: [Gpu("RTX 4090", "24564 MiB", "580.1")])
    assert extras.onnxruntimes() == ("onnxruntime", "onnxruntime-gpu")
    assert gpu_setting("cuda", CudaTarget.runtimes).runtime == "onnxruntime-gpu 1.31.1"
    assert cpu_setting(CpuTarget.runtimes).runtime == "onnxruntime 1.32.0"
