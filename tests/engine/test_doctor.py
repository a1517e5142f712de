"""`lira-edge doctor` says what this machine can run and what is missing."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lira_engine import LiraError, doctor
from lira_engine.ort import gpu_trial
from lira_engine.ort import target as ort_target
from lira_engine.ort.device import CPU
from lira_engine.system.cuda_libraries import CudaHere, CudaLibrary
from lira_engine.system.extras import installed
from lira_engine.trt.readiness import tensorrt_of

Record = Callable[..., None]
ORIN = {
    "--query-gpu=name,memory.total,driver_version": ["Orin (nvgpu), [N/A], 540.4.0"],
    "--query-gpu=compute_cap": ["[N/A]"],
    "-f=${Version}": ["6.2+b77"],
    "-q": ["NV Power Mode: MAXN_SUPER", "2"],
}
RTX = {
    "--query-gpu=name,memory.total,driver_version": ["NVIDIA GeForce RTX 4090, 24564 MiB, 580.95.05"],
    "--query-gpu=compute_cap": ["8.9"],
}


OnnxRuntime = Callable[[tuple[str | None, list[str]]], None]


@pytest.fixture
def has_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> OnnxRuntime:
    """has_onnxruntime((version, providers)): replace the installed ONNX Runtime."""

    def found(version_and_providers: tuple[str | None, list[str]]) -> None:
        for user in (doctor, ort_target):
            monkeypatch.setattr(user, "onnxruntime_here", lambda: version_and_providers)
        # A GPU on which everything works, and an ONNX Runtime that does not say for which CUDA it is.
        monkeypatch.setattr(ort_target, "cuda_device", lambda precision: CPU)
        version = str(version_and_providers[0])
        monkeypatch.setattr(doctor, "use_cuda_libraries", lambda: CudaHere(version, None, (), ()))

    return found


def test_doctor_lists_machine_packages_and_targets(printed_by: Any) -> None:
    printed = printed_by("doctor")
    for expected in (
        r"memory +[\d.]+ GiB",
        r"processor .*, \d+ cores",
        rf"onnxruntime +{re.escape(installed('onnxruntime') or '')}",
        r"cpu +yes",
        r"cuda +(yes|no)",
        r"tensorrt +(yes|no|build only)",
        r"tensorrt-rtx +(yes|no|build only)",
    ):
        assert re.search(expected, printed), expected


def test_doctor_tells_the_disk_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=9 << 30, free=3 << 29))
    (told,) = [row[1] for row in dict(doctor.examine())["machine"] if row[0] == "disk"]
    assert told.startswith("1.5 GiB free in ")


def test_doctor_names_the_missing_packages(
    monkeypatch: pytest.MonkeyPatch, has_onnxruntime: OnnxRuntime
) -> None:
    has_onnxruntime((None, []))
    monkeypatch.setattr(doctor, "missing_packages", lambda extra: ["x"])
    tables = dict(doctor.examine())
    assert ("cpu", "no", "needs ONNX Runtime: pip install 'lira-edge[cpu]'") in tables["targets"]
    assert ("[export]", "lacks x", "pip install 'lira-edge[export]'") in tables["packages"]
    has_onnxruntime(("1.23.2", ["CPU"]))
    targets = dict(doctor.examine())["targets"]
    assert ("portable", "no", "needs onnxruntime 1.25 or newer, found 1.23.2") in targets
    assert targets[0][:2] == ("cpu", "yes")


def targets() -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in dict(doctor.examine())["targets"]}


R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"


def test_doctor_describes_a_jetson(recorded: Record) -> None:
    recorded(ORIN, R36, "aarch64", tensorrt="10.3.0", pycuda="2024.1.2")
    tables = dict(doctor.examine())
    assert ("gpu", "Orin (nvgpu), [N/A], 540.4.0 (driver)") in tables["machine"]
    board = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super (p3768-0000+p3767-0005-super)"
    for line in (board, "L4T 36.4.3"):
        assert ("jetson", line) in tables["machine"]
    assert ("jetson", "JetPack 6.2+b77") in tables["machine"]
    assert ("power mode", "MAXN_SUPER") in tables["machine"]
    assert targets()["tensorrt"] == ("yes", "tensorrt 10.3.0")
    assert targets()["tensorrt-rtx"] == (
        "no",
        "is for x86-64 Linux and Windows, this is aarch64: take tensorrt",
    )
    assert "problems" not in tables


def test_doctor_names_what_does_not_fit_a_jetson(recorded: Record) -> None:
    recorded(ORIN, R36, "aarch64", tensorrt="10.7.0", pycuda="2024.1.2")
    assert targets()["tensorrt"] == ("yes", "tensorrt 10.7.0; JetPack 6.2+b77 comes with TensorRT 10.3")
    recorded(ORIN, R36, "aarch64", tensorrt="10.3.0")
    answer, note = targets()["tensorrt"]
    lacking = "CUDA's calls need pycuda or cuda-bindings: pip install cuda-bindings"
    assert (answer, note) == ("build only", f"tensorrt 10.3.0; {lacking}")
    recorded(ORIN, R36, "aarch64", tensorrt="10.3.0", cuda_bindings="12.9.10")
    assert targets()["tensorrt"] == ("yes", "tensorrt 10.3.0")
    recorded(ORIN, R36, "aarch64")
    answer, note = targets()["tensorrt"]
    assert answer == "no" and "sudo apt install tensorrt python3-libnvinfer" in note


def test_doctor_finds_a_jetsons_gpu_without_nvidia_smi(
    recorded: Record, has_onnxruntime: OnnxRuntime
) -> None:
    recorded({}, R36, "aarch64", tensorrt="10.3.0", pycuda="2024.1.2")
    has_onnxruntime(("1.23.0", ["CUDA", "CPU"]))
    assert ("gpu", "the board's own (no answer from nvidia-smi)") in dict(doctor.examine())["machine"]
    assert targets()["cuda"] == ("yes", "--provider cuda")
    assert targets()["tensorrt"] == ("yes", "tensorrt 10.3.0")


def test_doctor_says_where_the_libraries_of_cuda_are(
    recorded: Record, has_onnxruntime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(RTX, onnxruntime_gpu="1.31.1")
    assert "CUDA for onnxruntime" not in dict(doctor.examine())
    has_onnxruntime(("1.31.1", ["CUDA", "CPU"]))

    def rows(here: CudaHere) -> list[tuple[str, ...]]:
        monkeypatch.setattr(doctor, "use_cuda_libraries", lambda: here)
        return dict(doctor.examine())["CUDA for onnxruntime"]

    libraries = (
        CudaLibrary("CUDA runtime", "libcudart.so.13", "/cuda/libcudart.so.13", "13.0"),
        CudaLibrary("cuRAND", "libcurand.so.10", "libcurand.so.10"),
        CudaLibrary("cuBLAS", "libcublas.so.13", None),
        CudaLibrary("cuDNN", "libcudnn.so.9", "/x/libcudnn.so.9", "9.5.1", 12),
    )
    assert rows(CudaHere("1.31.1", 13, (13, 0), libraries)) == [
        ("onnxruntime", "1.31.1", "for CUDA 13"),
        ("driver", "up to CUDA 13.0", ""),
        ("CUDA runtime", "13.0", "/cuda/libcudart.so.13"),
        ("cuRAND", "libcurand.so.10", "libcurand.so.10"),
        ("cuBLAS", "libcublas.so.13", "missing: pip install 'lira-edge[cuda]'"),
        ("cuDNN", "9.5.1, for CUDA 12", "/x/libcudnn.so.9"),
    ]
    ((_, said, told),) = rows(CudaHere("1.31.1", 13, (12, 4), ()))[1:]
    assert said == "up to CUDA 12.4" and told.endswith("pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'")
    assert rows(CudaHere("1.23.0", None, None, ())) == [
        ("onnxruntime", "1.23.0", "it does not say for which CUDA"),
        ("driver", "", "missing: install NVIDIA's driver"),
    ]


def test_a_gpu_that_does_not_run_a_convolution_is_not_ready(
    recorded: Record, has_onnxruntime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(RTX, onnxruntime_gpu="1.31.1")
    has_onnxruntime(("1.31.1", ["CUDA", "CPU"]))

    def refuse(device: object) -> None:
        raise LiraError("cuDNN 9 is missing")

    monkeypatch.setattr(gpu_trial, "try_gpu", refuse)
    assert targets()["cuda"] == ("no", "cuDNN 9 is missing")


def test_doctor_takes_onnxruntime_gpu_for_the_extra_cpu(
    recorded: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(RTX, onnxruntime_gpu="1.31.1")
    monkeypatch.setattr(doctor, "missing_packages", lambda extra: [])
    monkeypatch.setattr(
        doctor, "versions", lambda *names: {one: "1.31.1" for one in names if one == "onnxruntime-gpu"}
    )
    assert ("[cpu]", "installed", "onnxruntime-gpu 1.31.1") in dict(doctor.examine())["packages"]


def test_each_jetpack_has_its_tensorrt() -> None:
    assert tensorrt_of("6.2+b77") == tensorrt_of("6.2.1+b38") == (10, 3)
    assert tensorrt_of("7.2.2-b10") == (11, 4, 1)
    assert tensorrt_of("7.2+b12") == tensorrt_of("7.2.0") == (10, 16)
    assert tensorrt_of("7.0") is tensorrt_of("7.2.1") is tensorrt_of("5.1.2") is None


def test_doctor_describes_an_rtx_machine(recorded: Record, has_onnxruntime: OnnxRuntime) -> None:
    recorded(RTX, tensorrt_rtx="1.7.1", pycuda="2025.1")
    shown = "NVIDIA GeForce RTX 4090, 24564 MiB, 580.95.05 (driver), compute capability 8.9"
    assert ("gpu", shown) in dict(doctor.examine())["machine"]
    assert targets()["tensorrt-rtx"] == ("yes", "tensorrt-rtx 1.7.1")
    assert targets()["cuda"][0] == "no"
    has_onnxruntime(("1.32.0", ["Tensorrt", "CUDA", "CPU"]))
    assert targets()["cuda"] == ("yes", "--provider cuda, tensorrt (not tried)")
    recorded({**RTX, "--query-gpu=compute_cap": ["6.1"]}, tensorrt_rtx="1.7.1", pycuda="2025.1")
    expected = "NVIDIA GeForce RTX 4090 has compute capability 6.1, expected 7.5 or newer"
    assert targets()["tensorrt-rtx"] == ("no", expected)
    recorded({}, tensorrt_rtx="1.7.1")  # engines for RTX are built without a GPU
    assert targets()["tensorrt-rtx"] == ("build only", "tensorrt-rtx 1.7.1, no NVIDIA GPU found")
    for target in ("cuda", "tensorrt"):  # no install command without a GPU
        assert targets()[target][1].startswith("no NVIDIA GPU found")
    recorded(RTX)
    answer, note = targets()["tensorrt-rtx"]
    assert answer == "no" and note.endswith("pip install 'lira-edge[rtx]'")


@pytest.mark.parametrize(
    ("cuda", "system", "driver", "least"),
    [
        ("13", "Linux", "575.64.03", 580),
        ("13", "Windows", "577.00", 580),
        ("13", "Linux", "580.65.06", None),
        ("12", "Linux", "530.41.03", 535),
        ("12", "Linux", "535.104.05", None),
        ("12", "Windows", "536.99", 537),
    ],
)
def test_doctor_names_a_driver_that_is_too_old(
    recorded: Record,
    monkeypatch: pytest.MonkeyPatch,
    cuda: str,
    system: str,
    driver: str,
    least: int | None,
) -> None:
    said = {**RTX, "--query-gpu=name,memory.total,driver_version": [f"RTX 4090, 24564 MiB, {driver}"]}
    packages = {f"tensorrt_rtx_cu{cuda}": "1.7.1", "tensorrt_rtx": "1.7.1", "pycuda": "2025.1"}
    recorded(said, **packages)
    monkeypatch.setattr(platform, "system", lambda: system)
    if least is None:
        assert targets()["tensorrt-rtx"] == ("yes", "tensorrt-rtx 1.7.1")
    else:
        note = f"running needs driver {least} or newer, found {driver}: update the driver"
        assert targets()["tensorrt-rtx"] == ("build only", f"tensorrt-rtx 1.7.1; {note}")
        recorded(said, tensorrt="11.4.1", **{f"tensorrt_cu{cuda}": "11.4.1"})
        assert targets()["tensorrt"] == ("no", f"tensorrt 11.4.1; {note}")


def test_doctor_names_the_build_for_a_card(recorded: Record) -> None:
    recorded({**RTX, "--query-gpu=compute_cap": ["7.5"]}, tensorrt_rtx="1.7.1", pycuda="2025.1")
    note = "tensorrt-rtx 1.7.1; for NVIDIA GeForce RTX 4090: `build ... --compute-capability 7.5`"
    assert targets()["tensorrt-rtx"] == ("yes", note)
    recorded({**RTX, "--query-gpu=compute_cap": ["9.0"]}, tensorrt_rtx="1.7.1", pycuda="2025.1")
    note = "it does not build for NVIDIA GeForce RTX 4090 (9.0): take --target cuda"
    assert targets()["tensorrt-rtx"] == ("no", note)


def test_doctor_removes_onnxruntime_before_onnxruntime_gpu(recorded: Record) -> None:
    recorded(RTX, onnxruntime="1.32.0")
    rows = {name: rest for name, *rest in dict(doctor.examine())["packages"]}
    assert rows["[cuda]"][1] == "pip uninstall -y onnxruntime, then pip install 'lira-edge[cuda]'"


def test_doctor_reports_both_onnxruntime_wheels(recorded: Record) -> None:
    recorded(RTX, onnxruntime="1.23.2", onnxruntime_gpu="1.23.2")
    ((problem,),) = dict(doctor.examine())["problems"]
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'lira-edge[cuda]'" in problem
