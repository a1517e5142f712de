"""What ONNX Runtime raises on a GPU is told in one line.

The texts are those of onnxruntime-gpu 1.31.1 without CUDA, and on a hollow CUDA that returns these errors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as OrtNotImplemented

from lira_engine import Bundle, LiraError
from lira_engine.errors import DeviceFailed, OutOfMemory
from lira_engine.ort import gpu_errors, session
from lira_engine.ort.device import CPU, Device
from lira_engine.ort.gpu_errors import gpu_errors_told
from lira_engine.ort.gpu_trial import try_gpu
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.placement import placement_of_run
from lira_engine.ort.session import open_session
from lira_engine.ort.stage import OrtStage
from lira_engine.system import cuda_libraries
from lira_engine.system.cuda_libraries import CudaHere, CudaLibrary
from lira_engine.system.machine import Gpu
from lira_export.config import LlmConfig

CUDA = Device(("CUDAExecutionProvider",), "cuda")
SOURCE = "/onnxruntime_src/onnxruntime/core"
THROWN = (
    SOURCE + "/providers/cuda/cuda_call.cc:{} std::conditional_t<THRW, void, onnxruntime::common::Status> "
    "onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const char*, const char*, int) [with "
    "ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError; std::conditional_t<THRW, void, "
    "common::Status> = void] "
)
FULL = (
    f"{SOURCE}/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, "
    "onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 1073741824\n"
)


def cuda_failure(number: int, text: str, call: str = "cudaSetDevice(info_.device_id)") -> str:
    return (
        f"{THROWN.format(154)}{THROWN.format(146)}CUDA failure {number}: {text} ; GPU=0 ; hostname=secret ; "
        f"file={SOURCE}/providers/cuda/cuda_execution_provider.cc ; line=355 ; expr={call}; \n\n"
    )


def in_node(said: str, op: str = "Conv", name: str = "/vit/Conv") -> str:
    return (
        f"[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running {op} node. "
        f"Name:'{name}' Status Message: {said}"
    )


NO_CUDNN = in_node(
    f"{SOURCE}/providers/cuda/cuda_kernel.h:296 static cudnnContext* onnxruntime::cuda::CudaKernel::"
    "RequireCudnnHandle(cudnnHandle_t) [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : cuDNN is unavailable or "
    "disabled for CUDA Execution Provider: dlopen failed for libcudnn.so: libcudnn.so: cannot open shared "
    "object file: No such file or directory\n"
)
NO_TENSORRT = (
    "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void onnxruntime::python::"
    "RegisterTensorRTPluginsAsCustomOps(PySessionOptions&, const onnxruntime::ProviderOptions&) Please "
    "install TensorRT libraries as mentioned in the GPU requirements page, make sure they're in the PATH or "
    "LD_LIBRARY_PATH, and that your GPU is supported.\n"
)
OLD = cuda_failure(35, "CUDA driver version is insufficient for CUDA runtime version")
ILLEGAL = cuda_failure(700, "an illegal memory access was encountered", "cudaStreamSynchronize(stream)")
CUBLAS = in_node(
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=secret ; file=x", "MatMul", ""
)
KERNEL = in_node("CUDA error cudaErrorMemoryAllocation:out of memory", "Cast")
CUDNN = in_node("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=secret ; file=x")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The facts about the machine that messages name; a test may change them."""
    cudnn = CudaLibrary("cuDNN", "libcudnn.so.9", "/usr/lib/libcudnn.so.9", "9.19.0", 13)
    facts = {"cuda": CudaHere("1.31.1", 13, (12, 4), (cudnn,))}
    for user in (gpu_errors, session):
        monkeypatch.setattr(user, "use_cuda_libraries", lambda: facts["cuda"])
    for user in (gpu_errors, cuda_libraries):
        monkeypatch.setattr(user, "gpus", lambda: [Gpu("RTX 4090", "24564 MiB", "550.54", "8.9")])
    return facts


def told(error: Exception, device: Device = CUDA) -> LiraError:
    with pytest.raises(LiraError) as caught, gpu_errors_told(device):
        raise error
    said = str(caught.value)
    assert "\n" not in said and "hostname" not in said and "onnxruntime_src" not in said and len(said) < 320
    return caught.value


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            OLD,
            "NVIDIA's driver 550.54 runs CUDA 12.4 at most, onnxruntime 1.31.1 is for CUDA 13: update "
            "the driver",
        ),
        (
            cuda_failure(100, "no CUDA-capable device is detected"),
            "no GPU (CUDA failure 100: no CUDA-capable device is detected, CUDA_VISIBLE_DEVICES is '7')",
        ),
        (cuda_failure(101, "invalid device ordinal"), "CUDA finds no GPU (CUDA failure 101"),
        (cuda_failure(46, "busy"), "the GPU takes no work now (CUDA failure 46: busy): end the program"),
        (cuda_failure(803, "mismatch"), "the driver that runs is not the one that is installed"),
        (cuda_failure(209, "no kernel image"), "this onnxruntime has no code for the GPU"),
        (
            in_node("CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available", "Cast"),
            "no code for the GPU (CUDA cudaErrorNoKernelImageForDevice: no kernel image is available)",
        ),
        (
            NO_CUDNN,
            "cuDNN 9 is missing, which the GPU needs in Conv /vit/Conv: pip install 'lira-edge[cuda]'",
        ),
        (
            NO_TENSORRT,
            "TensorRT's libraries (libnvinfer, libnvonnxparser) are missing, which --provider tensorrt needs",
        ),
    ],
)
def test_what_cannot_start_is_told_with_what_mends_it(
    said: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    for error in (RuntimeError(said), Fail(said), OrtNotImplemented(said)):
        found = told(error)
        assert expected in str(found) and isinstance(found, DeviceFailed)


def test_a_run_that_fails_is_told(here: dict[str, Any]) -> None:
    here["cuda"] = CudaHere("1.31.1", 13, (13, 0), here["cuda"].libraries)
    assert str(told(Fail(in_node(ILLEGAL, "MatMul", "")))) == (
        "the GPU failed in MatMul (CUDA failure 700: an illegal memory access was encountered): run it "
        "again in "
        "a new process; if it fails again, report it with the output of `lira-edge doctor`"
    )
    failures = {
        CUDNN: "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED",
        in_node("CUDA error cudaErrorLaunchFailure:unspecified"): "CUDA cudaErrorLaunchFailure: unspecified",
        in_node("CUBLAS error executing cublasGemmHelper(x)"): "CUBLAS executing: cublasGemmHelper",
    }
    for said, expected in failures.items():
        assert f"the GPU failed in Conv /vit/Conv ({expected}): run it again" in str(told(Fail(said)))


def test_a_run_that_fails_names_a_library_that_does_not_fit(here: dict[str, Any]) -> None:
    cudnn = CudaLibrary("cuDNN", "libcudnn.so.9", "/usr/lib/libcudnn.so.9", "9.5.1", 12)
    here["cuda"] = CudaHere("1.31.1", 13, (13, 0), (cudnn,))
    assert "cuDNN 9.5.1 (/usr/lib/libcudnn.so.9) is for CUDA 12" in str(told(Fail(CUDNN)))


@pytest.mark.parametrize("said", [FULL, cuda_failure(2, "out of memory", "cudaMalloc"), CUBLAS, KERNEL])
def test_a_full_card_is_told_apart_from_a_full_machine(said: str) -> None:
    for error in (RuntimeError(said), Fail(said)):
        found = told(error)
        assert isinstance(found, OutOfMemory)
        assert str(found).startswith("out of memory on the GPU (RTX 4090, 24564 MiB)")
        assert "--tiles one or --precision int4" in str(found) and "add swap" not in str(found)
    assert ("for a tensor of 1,024 MiB:" in str(found)) == (said == FULL)
    for error in (MemoryError(), RuntimeError("std::bad_alloc")):
        assert "add swap" in str(told(error))
    assert "add swap" in str(told(Fail(FULL), CPU))


def test_a_tensor_takes_what_holds_it() -> None:
    assert "for a tensor of 1,025 MiB:" in str(told(Fail(FULL.replace("1073741824", "1073741825"))))


def test_other_errors_stay_what_they_are() -> None:
    """A bug keeps its traceback, and what a user wrote is no error of a GPU."""
    for error in (RuntimeError("mismatch"), Fail("Got invalid dimensions"), ValueError(OLD)):
        with pytest.raises(type(error)) as caught, gpu_errors_told(CUDA):
            raise error
        assert caught.value is error
    with pytest.raises(RuntimeError), gpu_errors_told(CPU):
        raise RuntimeError(OLD)


# Each place that opens, fills or runs a session.


def raising(said: str) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(said)

    return refuse


def test_opening_a_session_tells(
    made_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Bundle.open(made_bundle).stage_file("sefe")
    monkeypatch.setattr(onnxruntime, "InferenceSession", raising(OLD))
    with pytest.raises(LiraError, match=r"^NVIDIA's driver 550.54 runs CUDA 12.4 at most"):
        open_session(file, device=CUDA)
    monkeypatch.setattr(onnxruntime, "InferenceSession", raising(FULL))
    with pytest.raises(OutOfMemory, match=r"^out of memory on the GPU"):
        open_session(file, device=CUDA)
    assert capfd.readouterr() == ("", "")


def test_a_session_without_its_provider_names_what_lacks(
    made_bundle: Path, monkeypatch: pytest.MonkeyPatch, here: dict[str, Any]
) -> None:
    """ONNX Runtime itself would log a page, and run everything on the CPU."""
    file = Bundle.open(made_bundle).stage_file("sefe")
    opened = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: opened)
    here["cuda"] = CudaHere("1.31.1", 13, (13, 0), (CudaLibrary("cuRAND", "libcurand.so.10", None),))
    with pytest.raises(
        LiraError,
        match=r"could not start CUDAExecutionProvider: onnxruntime 1.31.1 needs CUDA 13 and cuDNN 9, missing"
        r": cuRAND \(libcurand.so.10\): pip install 'lira-edge\[cuda\]'",
    ):
        open_session(file, device=CUDA)
    here["cuda"] = CudaHere("1.31.1", None, (13, 0), ())
    with pytest.raises(LiraError, match=r"most likely because libraries of CUDA.* see `lira-edge doctor`"):
        open_session(file, device=CUDA)


def test_sessions_log_nothing_on_a_gpu_either(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    original = onnxruntime.InferenceSession

    def opened(path: str, options: Any, **rest: Any) -> Any:
        levels.append(options.log_severity_level)
        found = original(path, options)
        monkeypatch.setattr(found, "get_providers", lambda: list(CUDA.providers))
        return found

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", levels.append)
    open_session(Bundle.open(made_bundle).stage_file("sefe"), device=CUDA)
    assert levels == [4, 4]


def test_a_stage_tells(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(made_bundle)
    feeds = bundle.check_vectors("sefe").inputs
    with OrtStage("sefe", bundle.stage_file("sefe"), bundle.manifest.stages["sefe"], threads=1) as runner:
        runner.device = CUDA
        monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", raising(FULL))
        with pytest.raises(OutOfMemory, match=r"^out of memory on the GPU"):
            runner.run(feeds)
        monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", raising(NO_CUDNN))
        with pytest.raises(LiraError, match=r"^cuDNN 9 is missing"):
            runner.run(feeds)
        monkeypatch.setattr("lira_engine.ort.stage.bind_input", raising(FULL))  # it copies to the device
        with pytest.raises(OutOfMemory, match=r"^out of memory on the GPU"):
            runner.run(feeds)


@pytest.mark.portable
def test_the_language_model_tells(
    random_llm: Callable[[LlmConfig, int], ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlmConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
        rope_theta=1e4, rms_norm_eps=1e-5,
    )  # fmt: skip
    ir.save(random_llm(config, 8), tmp_path / "llm.onnx")
    with OrtLlm(tmp_path / "llm.onnx", threads=1) as llm:
        cache = llm.new_cache()
        llm._device = CUDA
        monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", raising(ILLEGAL))
        with pytest.raises(LiraError, match="CUDA failure 700"):
            llm.forward(np.zeros((1, 16), np.float32), cache)
        monkeypatch.setattr("lira_engine.ort.llm.bind_input", raising(FULL))  # it copies to the device
        with pytest.raises(OutOfMemory, match=r"^out of memory on the GPU"):
            llm.forward(np.zeros((1, 16), np.float32), cache)
        monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", raising(FULL))
        with pytest.raises(OutOfMemory, match=r"^out of memory on the GPU"):
            llm.new_cache()


def test_placement_and_the_trial_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = SimpleNamespace(run=raising(NO_CUDNN), get_inputs=lambda: [])
    monkeypatch.setattr("lira_engine.ort.session.open_session", lambda *args, **kwargs: failing)
    monkeypatch.setattr("lira_engine.ort.gpu_trial.open_session", lambda *args, **kwargs: failing)
    with pytest.raises(LiraError, match=r"^cuDNN 9 is missing"):
        placement_of_run(tmp_path / "x.onnx", CUDA, {})
    with pytest.raises(LiraError, match=r"^cuDNN 9 is missing"):
        try_gpu(CUDA)


def test_the_trial_is_a_graph_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lira_engine.ort.gpu_trial.open_session", lambda path, threads, device: open_session(path, threads)
    )
    try_gpu(CUDA)
