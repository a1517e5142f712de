"""Stages run by ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import mmap
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np

from lira_engine.bundle.manifest import StageSpec, TensorSpec
from lira_engine.engines.runner import Feeds, Stage, check_feeds, host_array
from lira_engine.errors import Closed, LiraError, OutOfMemory, memory_errors_told
from lira_engine.ort.device import CPU, Device
from lira_engine.system.extras import install_line
from lira_engine.system.machine import usable_cores

try:
    with memory_errors_told():
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import (
            Fail,
            InvalidArgument,
            InvalidGraph,
            InvalidProtobuf,
            NoSuchFile,
            NotImplemented,
            RuntimeException,
        )
except ImportError as error:
    raise LiraError(
        f"ONNX Runtime is not installed: {install_line('cpu')}, or on a machine with an NVIDIA GPU "
        f"{install_line('cuda')}"
    ) from error

ORT_ERRORS = (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    NotImplemented,
    RuntimeException,
)


_PER_THREAD = 72 << 20
"""Bytes: 8 MiB of stack, and 64 MiB that the GNU C library keeps for what the thread allocates."""

Form = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype."""


def version() -> tuple[int, ...]:
    """ONNX Runtime's: (major, minor)."""
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


class OrtStage(Stage):
    """A stage's ONNX file in a session. Its outputs stay in the device's memory until `numpy` is asked."""

    def __init__(
        self,
        name: str,
        path: Path,
        spec: StageSpec,
        threads: int | None = None,
        prepack: bool = True,
        device: Device = CPU,
    ) -> None:
        """`threads`, `prepack`, `device`: see `open_session`.

        Raises LiraError where the file cannot be loaded or its tensors are not those of `spec`.
        """
        self.name = name
        self.device = device
        self.input_specs: Mapping[str, TensorSpec] = spec.inputs
        self.output_specs: Mapping[str, TensorSpec] = spec.outputs
        self._session: onnxruntime.InferenceSession | None = open_session(
            path, threads, prepack, device=device
        )
        found = {tensor.name for tensor in self._session.get_inputs()}
        missing = spec.outputs.keys() - {tensor.name for tensor in self._session.get_outputs()}
        if found != spec.inputs.keys() or missing:
            raise LiraError(
                f"{path} has inputs {sorted(found)}, expected {sorted(spec.inputs)}"
                + (f", and lacks outputs {sorted(missing)}" if missing else "")
            )

    def start(self, feeds: Feeds) -> OrtPass:
        """A pass that runs when its first result is needed. Raises LiraError as `StageRunner.start` does."""
        sizes = check_feeds(self.name, self.input_specs, feeds)
        outputs = {
            name: (tuple(sizes[n] if isinstance(n, str) else n for n in spec.shape), np.dtype(spec.dtype))
            for name, spec in self.output_specs.items()
        }
        return OrtPass(outputs, partial(self._run, dict(feeds), outputs))

    def _run(self, feeds: Feeds, outputs: Mapping[str, Form]) -> dict[str, onnxruntime.OrtValue]:
        session = self._session  # a thread that closes the stage does not take it away
        if session is None:
            raise Closed(self.name)
        binding = session.io_binding()
        kept = []  # until the run is over
        for name, tensor in feeds.items():
            if isinstance(tensor, OrtTensor):
                binding.bind_ortvalue_input(name, tensor.value)
            else:
                kept.append(np.ascontiguousarray(host_array(tensor)))
                bind_input(binding, name, kept[-1])
        with memory_errors_told():
            found = {
                name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self.device.memory, 0)
                for name, (shape, dtype) in outputs.items()
            }
            for name, value in found.items():
                binding.bind_ortvalue_output(name, value)
            session.run_with_iobinding(binding, run_options(self.device))
        return found

    def close(self) -> None:
        self._session = None


class OrtPass:
    """A pass of an `OrtStage`: one that nobody needs a result of costs nothing."""

    def __init__(
        self, outputs: Mapping[str, Form], run: Callable[[], dict[str, onnxruntime.OrtValue]]
    ) -> None:
        self._outputs = outputs
        self._run: Callable[[], dict[str, onnxruntime.OrtValue]] | None = run
        self._values: dict[str, onnxruntime.OrtValue] = {}
        self._lock = threading.Lock()

    @property
    def outputs(self) -> dict[str, OrtTensor]:
        return {name: OrtTensor(self, name, *form) for name, form in self._outputs.items()}

    def numpy(self, name: str) -> np.ndarray:
        array: np.ndarray = self.value(name).numpy()
        array.setflags(write=False)  # on the CPU it is the tensor's own memory
        return array

    def value(self, name: str) -> onnxruntime.OrtValue:
        """An output where the device left it."""
        with self._lock:
            if self._run is not None:
                self._values = self._run()
                self._run = None  # frees the inputs
        return self._values[name]


class OrtTensor:
    """An output of a pass that may not have run yet. Once it has, this output is all that is kept alive."""

    def __init__(self, made_by: OrtPass, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self._made_by: OrtPass | None = made_by
        self._value: onnxruntime.OrtValue | None = None

    @property
    def value(self) -> onnxruntime.OrtValue:
        made_by = self._made_by
        if made_by is not None:
            self._value = made_by.value(self.name)
            self._made_by = None
        return self._value


def bind_input(binding: onnxruntime.IOBinding, name: str, array: np.ndarray) -> None:
    """Bind an array's own memory; the caller keeps it alive until the run is over.

    What another memory needs is copied there now: an array that changes is bound again before each run.
    """
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: onnxruntime.IOBinding, name: str, array: np.ndarray) -> None:
    """Let a run write into an array's own memory; the caller keeps it alive until the run is over."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


@cache
def _share_arena() -> None:
    """One arena for all sessions, which grows by what is asked for (the default doubles what it takes)."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    same_as_requested = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(memory, same_as_requested)


@cache
def giving_back() -> onnxruntime.RunOptions:
    """Options of a run after which the arena returns what it does not need any more."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def run_options(device: Device) -> onnxruntime.RunOptions | None:
    """What a run of large tensors is given. A GPU's arena keeps its memory: giving it back waits for the
    device."""
    return giving_back() if device.memory == "cpu" else None


def _check_threads(threads: int | None) -> None:
    """Raise OutOfMemory where a session's threads would not get what each reserves: ONNX Runtime then fails
    anywhere, or crashes."""
    threads = usable_cores() if threads is None else threads
    if threads == 1 or sys.platform != "linux":
        return
    try:
        with mmap.mmap(-1, (threads - 1) * _PER_THREAD):
            pass
    except OSError as error:
        raise OutOfMemory(
            f"the system refused the address space of {threads} threads ({(threads - 1) * _PER_THREAD >> 20} "
            "MiB): take --threads 1, or raise the limit (ulimit -v, the container's)"
        ) from error


def open_session(
    path: Path,
    threads: int | None = None,
    prepack: bool = True,
    reuse: bool = False,
    device: Device = CPU,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """A session on `device`.

    `threads` None leaves the number to ONNX Runtime (one per core). `prepack` False keeps weights as they
    are: a second copy, in the order in which kernels read, pays only where a session runs more than once.
    `reuse` True plans ahead which tensors share a buffer: a percent faster where a run takes milliseconds,
    but of a stage with large tensors it may take twice the memory. `profile`: how the name of the file with
    a profile of its runs begins.
    Raises LiraError with the reason where ONNX Runtime does not accept the file, or not the device, and
    OutOfMemory where the system refuses what it asks for.
    """
    options = onnxruntime.SessionOptions()
    # Its warnings are about graphs, not for users, and an error is in the exception, too; but which library
    # a GPU lacks is said in its log only.
    severity = 4 if device.memory == "cpu" else 3
    onnxruntime.set_default_logger_severity(severity)
    options.log_severity_level = severity
    # ONNX Runtime's plans trade memory for calls of the allocator: a buffer lives until the last tensor that
    # will use it again, and a second run allocates the sum of all at once. Each tensor on its own halves the
    # pixel encoder's peak, and an arena makes that no slower.
    options.enable_mem_reuse = reuse
    options.enable_mem_pattern = False
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # 4-bit weights behind DequantizeLinear, as TensorRT's graphs have them: their products in fp32, not int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    _check_threads(threads)
    try:
        # By itself it would try again on the CPU, and say so among other output only.
        with memory_errors_told():
            session = onnxruntime.InferenceSession(
                str(path), options, providers=device.session_providers(), enable_fallback=0
            )
    except ORT_ERRORS as error:
        reason = " ".join(str(error).split())
        raise LiraError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: expected 1.25 or newer for a "
            "portable graph, 1.20 or newer for an engine that `lira-edge build BUNDLE` made; it says: "
            f"{reason[:300]}"
        ) from error
    lacking = [name for name in device.providers if name not in session.get_providers()]
    if lacking:
        raise LiraError(
            f"ONNX Runtime {onnxruntime.__version__} could not start {' and '.join(lacking)}, most likely "
            "for want of the GPU's driver or of CUDA's and cuDNN's libraries: see `lira-edge doctor`"
        )
    return session
