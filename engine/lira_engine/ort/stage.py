"""Run stages by ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from lira_engine.bundle.manifest import StageSpec, TensorSpec
from lira_engine.engines.runner import Feeds, Stage, check_feeds, host_array
from lira_engine.errors import Closed, LiraError
from lira_engine.ort.device import CPU, Device
from lira_engine.ort.package import onnxruntime
from lira_engine.ort.run_errors import run_errors_told
from lira_engine.ort.session import bind_input, open_session, run_options

_AGAIN = ("semantic_encoder",)
"""Stages that run several times in a row: they keep their memory until another stage has run."""
ShapeAndDtype = tuple[tuple[int, ...], np.dtype]


class OrtStage(Stage):
    """A stage's ONNX file in a session. Its outputs stay in the device's memory until `numpy` is called."""

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

        Raises LiraError if the file cannot be loaded or its tensors are not those of `spec`.
        """
        self.name = name
        self.device = device
        self._path = path
        self.input_specs: Mapping[str, TensorSpec] = spec.inputs
        self.output_specs: Mapping[str, TensorSpec] = spec.outputs
        self._session: onnxruntime.InferenceSession | None = open_session(
            path, threads, prepack, device=device
        )
        inputs = {tensor.name: tensor for tensor in self._session.get_inputs()}
        outputs = {tensor.name: tensor for tensor in self._session.get_outputs()}
        missing = spec.outputs.keys() - outputs.keys()
        if inputs.keys() != spec.inputs.keys() or missing:
            raise LiraError(
                f"{path} has inputs {sorted(inputs)}, expected {sorted(spec.inputs)}"
                + (f", and lacks outputs {sorted(missing)}" if missing else "")
            )
        for name, expected in (spec.inputs | spec.outputs).items():
            tensor = inputs.get(name) or outputs[name]
            if not _fits(tensor, expected):
                raise LiraError(
                    f"{path}: {name} is a {tensor.type} {tensor.shape}, expected {expected.dtype} "
                    f"{list(expected.shape)}: build the engines again with --force, or copy the bundle again"
                )

    def start(self, feeds: Feeds) -> OrtRun:
        """Return a run that starts when a result is first needed. Raises LiraError as `StageRunner.start`."""
        sizes = check_feeds(self.name, self.input_specs, feeds)
        outputs = {
            name: (tuple(sizes[n] if isinstance(n, str) else n for n in spec.shape), np.dtype(spec.dtype))
            for name, spec in self.output_specs.items()
        }
        return OrtRun(outputs, partial(self._run, dict(feeds), outputs))

    def _run(self, feeds: Feeds, outputs: Mapping[str, ShapeAndDtype]) -> dict[str, onnxruntime.OrtValue]:
        session = self._session  # another thread may close the stage meanwhile
        if session is None:
            raise Closed(self.name)
        binding = session.io_binding()
        kept = []  # alive until the run is over
        with run_errors_told(self._path, self.device):
            for name, tensor in feeds.items():
                if isinstance(tensor, OrtTensor):
                    binding.bind_ortvalue_input(name, tensor.value)
                else:
                    kept.append(np.ascontiguousarray(host_array(tensor)))
                    bind_input(binding, name, kept[-1])
            found = {
                name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self.device.memory, 0)
                for name, (shape, dtype) in outputs.items()
            }
            for name, value in found.items():
                binding.bind_ortvalue_output(name, value)
            session.run_with_iobinding(binding, None if self.name in _AGAIN else run_options(self.device))
        return found

    def close(self) -> None:
        self._session = None


_TYPES = {"float": "float32", "double": "float64"}


def _fits(tensor: onnxruntime.NodeArg, spec: TensorSpec) -> bool:
    """Return whether a session's tensor may be what `spec` says. Either may leave a size open."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    sizes = zip(tensor.shape, spec.shape, strict=False)
    return (
        _TYPES.get(kind, kind) == spec.dtype
        and len(tensor.shape) == len(spec.shape)
        and all(found == size for found, size in sizes if isinstance(found, int) and isinstance(size, int))
    )


class OrtRun:
    """A run of an `OrtStage`. It costs nothing if no result is needed."""

    def __init__(
        self, outputs: Mapping[str, ShapeAndDtype], run: Callable[[], dict[str, onnxruntime.OrtValue]]
    ) -> None:
        self._outputs = outputs
        self._run: Callable[[], dict[str, onnxruntime.OrtValue]] | None = run
        self._values: dict[str, onnxruntime.OrtValue] = {}
        self._lock = threading.Lock()

    @property
    def outputs(self) -> dict[str, OrtTensor]:
        return {name: OrtTensor(self, name, shape, dtype) for name, (shape, dtype) in self._outputs.items()}

    def numpy(self, name: str) -> np.ndarray:
        array: np.ndarray = self.value(name).numpy()
        array.setflags(write=False)  # on the CPU it is the tensor's own memory
        return array

    def value(self, name: str) -> onnxruntime.OrtValue:
        """Return an output in the device's memory; start the run if nobody did."""
        with self._lock:
            if self._run is not None:
                self._values = self._run()
                self._run = None  # frees the inputs
        return self._values[name]


class OrtTensor:
    """An output of a run that may not have started yet. Afterwards it keeps only this output alive."""

    def __init__(self, made_by: OrtRun, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self._made_by: OrtRun | None = made_by
        self._value: onnxruntime.OrtValue | None = None

    @property
    def value(self) -> onnxruntime.OrtValue:
        made_by = self._made_by
        if made_by is not None:
            self._value = made_by.value(self.name)
            self._made_by = None
        return self._value
