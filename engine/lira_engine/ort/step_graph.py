"""Decode steps as CUDA graphs: all kernels of a step are launched by one call.

A captured graph repeats its kernels on the same addresses. So a step's tensors stay where they are, and what
differs from step to step is written there before: the embeddings, and where the row goes. What the host would
read must not differ: a step has one row, and attention's kernels are laid out for all rows of the cache. How
many of these are filled, they read on the device (docs/architecture.md).
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count

import numpy as np

from lira_engine.engines.llm_tensors import TOTAL, cache_output, length_inputs
from lira_engine.errors import DeviceFailed, LiraError
from lira_engine.ort.device import Device
from lira_engine.ort.gpu_errors import gpu_errors_told
from lira_engine.ort.package import ORT_ERRORS, onnxruntime

Rows = dict[str, onnxruntime.OrtValue]
"""Keys and values of a cache, by the names of their inputs."""
_GRAPH = "gpu_graph_id"

_CAPTURE_FAILED = re.compile(r"CUDA failure 90\d|cudaErrorStreamCapture|cudaErrorCapturedEvent")
"""Numbers of cudaError_t from 900 on are those of a stream that is captured. A kernel's errors have names."""


def numbered(number: int) -> onnxruntime.RunOptions:
    """Return options of a run that captures a graph of this number, or replays it; -1 does neither."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_GRAPH, str(number))
    return options


@cache
def not_captured() -> onnxruntime.RunOptions:
    """Return options of a run, in a session that captures, which is none of a captured step."""
    return numbered(-1)


class NotCaptured(LiraError):
    """ONNX Runtime cannot capture runs of a graph. `reason`: in its words."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def refusal_told() -> Iterator[None]:
    """Raises NotCaptured if a session that captures does not open for this reason."""
    try:
        yield
    except LiraError as error:
        said = re.search(r"cannot use the (?:graph capture|CUDA Graph) feature.*", str(error))
        if said is None:
            raise
        reason = " ".join(said[0].split())
        raise NotCaptured(
            f"ONNX Runtime {onnxruntime.__version__} does not capture the decode steps of these engines, as "
            f"that did which built them: build them again with --force; it says: {reason[:300]}",
            reason,
        ) from error


def _failed(error: Exception) -> DeviceFailed:
    reason = " ".join(str(error).split())
    return DeviceFailed(
        "a decode step failed as a CUDA graph: build with --step-graph off, and report this with the "
        f"output of `lira-edge doctor`; ONNX Runtime {onnxruntime.__version__} says: {reason[:300]}"
    )


class StepGraph:
    """The decode step on one cache's memory.

    ONNX Runtime captures it in the first run, after two others of the same row, and for each thread anew.

    Attributes:
        rows: of the cache.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, rows: Rows, number: int, device: Device
    ) -> None:
        self.rows = rows
        self._options = numbered(number)
        self._binding: onnxruntime.IOBinding | None = session.io_binding()
        self._device = device
        inputs = {tensor.name for tensor in session.get_inputs()}
        outputs = {tensor.name: tensor for tensor in session.get_outputs()}
        width = outputs["hidden_states"].shape[2]
        capacity = next(iter(rows.values())).shape()[2]
        # Of what tells where the row goes, the host reads the total: the graph keeps the first run's.
        lengths = length_inputs(capacity - 1, 1)
        given = {"inputs_embeds": np.zeros((1, 1, width), np.float32), **lengths}
        given |= {"logit_positions": np.zeros(1, np.int64)}
        self._values = {
            name: self._value(array, "cpu" if name == TOTAL else device.memory)
            for name, array in given.items()
            if name in inputs
        }
        self._moving = [name for name in lengths if name in inputs and name != TOTAL]
        for name, value in {**self._values, **rows}.items():
            self._binding.bind_ortvalue_input(name, value)
        self._outputs = {
            name: self._value(np.zeros((1, 1, outputs[name].shape[2]), np.float32), device.memory)
            for name in ("logits", "hidden_states")
        }
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        for name, value in rows.items():
            self._binding.bind_ortvalue_output(cache_output(name), value)

    def run(
        self, session: onnxruntime.InferenceSession, embeds: np.ndarray, position: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Write the row [1, 1, C] at `position`; return its logits [1, 1, V] and hidden states [1, 1, C]."""
        assert self._binding is not None
        self._values["inputs_embeds"].update_inplace(embeds)
        lengths = length_inputs(position, 1)
        for name in self._moving:
            self._values[name].update_inplace(lengths[name])
        try:
            with gpu_errors_told(self._device):
                session.run_with_iobinding(self._binding, self._options)
        except (RuntimeError, *ORT_ERRORS) as error:
            raise _failed(error) from error
        except LiraError as error:
            if _CAPTURE_FAILED.search(str(error)):
                raise _failed(error) from error
            raise
        return self._read("logits"), self._read("hidden_states")

    def _read(self, name: str) -> np.ndarray:
        array: np.ndarray = self._outputs[name].numpy()  # on a CPU the tensor's own memory
        return array.copy() if self._device.memory == "cpu" else array

    def _value(self, array: np.ndarray, memory: str) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, memory, 0)

    def clear(self, dtype: type[np.number]) -> None:
        """Fill the rows with zeros again."""
        for value in self.rows.values():
            value.update_inplace(np.zeros(value.shape(), dtype))

    def close(self) -> None:
        """Free the memory. The graph is the session's."""
        self._binding = None
        self.rows, self._values, self._outputs = {}, {}, {}


class StepGraphs:
    """The captured steps of a session.

    A graph cannot be dropped without the others, and must not outlive the memory that it writes to. So the
    memory of a cache that is gone waits, with its graph, for the next cache: there are as many as caches were
    alive at once.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        new_rows: Callable[[], Rows],
        dtype: type[np.number],
        device: Device,
    ) -> None:
        self._session, self._new_rows, self._dtype, self._device = session, new_rows, dtype, device
        self._numbers = count(1)
        self._free: list[StepGraph] = []
        self._all: list[StepGraph] = []

    def __len__(self) -> int:
        return len(self._all)

    def take(self) -> StepGraph:
        """Return the step of a new, empty cache. From any thread."""
        try:
            step = self._free.pop()  # without a look before: another thread may take the last one
        except IndexError:
            step = StepGraph(self._session, self._new_rows(), next(self._numbers), self._device)
            self._all.append(step)
        else:
            step.clear(self._dtype)
        return step

    def give_back_after(self, owner: object, step: StepGraph) -> None:
        """Let the next cache have a step when its owner is gone."""
        weakref.finalize(owner, self._free.append, step).atexit = False

    def close(self) -> None:
        for step in self._all:
            step.close()
