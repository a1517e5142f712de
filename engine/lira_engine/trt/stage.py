"""A stage run by TensorRT, in a stream of its own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping

import numpy as np

from lira_engine.manifest import StageSpec, TensorSpec
from lira_engine.runner import Closing, check_feeds
from lira_engine.trt.driver import Buffer
from lira_engine.trt.engine import TrtContext, TrtEngine


class TrtStage(Closing):
    """One engine with its buffers on the device, which are allocated once and grow with a varying size.

    Arrays that `run` returns are read-only. So an array that a stage returned, and that is given to this one
    again and again (an image's features, at each of its masks), is the same each time and is copied once.
    """

    def __init__(self, name: str, engine: TrtEngine, spec: StageSpec) -> None:
        """Made inside `driver.current()`; `engine` has the tensors of `spec`."""
        self.name = name
        self.input_specs: Mapping[str, TensorSpec] = spec.inputs
        self.output_specs: Mapping[str, TensorSpec] = spec.outputs
        self._engine = engine
        self._driver = engine.driver
        self._stream = self._driver.stream()
        self._context: TrtContext | None = engine.new_context(0, self._stream)
        self._buffers: dict[str, Buffer] = {}
        self._uploaded: dict[str, weakref.ref[np.ndarray]] = {}
        # A mask may be looked at from one thread while another one answers.
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name. Waits for this stage alone: what runs in other streams goes on.

        Raises LiraError where the feeds are not what `input_specs` says, or of a size that the engine was not
        built for.
        """
        check_feeds(self.name, self.input_specs, feeds)
        with self._lock, self._driver.current():
            if self._context is None:
                raise ValueError(f"{self.name} is closed")
            # Copies read and write these until the stream has passed them.
            arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
            try:
                outputs = self._enqueue(self._context, arrays)
            finally:
                self._stream.synchronize()
            constant = {name: array for name, array in feeds.items() if _is_constant(array)}
            self._uploaded = {name: weakref.ref(array) for name, array in constant.items()}
        for array in outputs.values():
            array.setflags(write=False)
        return outputs

    def _enqueue(self, context: TrtContext, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        there, self._uploaded = self._uploaded, {}  # until the run is over without an error
        for name, array in arrays.items():
            context.set_shape(name, array.shape)
        for name, array in arrays.items():
            if name in there and there[name]() is array:
                continue
            buffer = self._buffer(context, name, array.nbytes)
            self._driver.copy_in(buffer, array, self._stream)
        outputs = {}
        for name, spec in self.output_specs.items():
            outputs[name] = np.empty(context.shape(name), np.dtype(spec.dtype))
            self._buffer(context, name, outputs[name].nbytes)
        context.execute(self._stream)
        for name, array in outputs.items():
            self._driver.copy_out(array, self._buffers[name], self._stream)
        return outputs

    def _buffer(self, context: TrtContext, name: str, size: int) -> Buffer:
        """A tensor's buffer of at least `size` bytes. The stream is idle where one has to grow."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            if buffer is not None:
                del self._buffers[name]
                buffer.free()
            buffer = self._buffers[name] = self._driver.allocate(size)
            context.bind(name, buffer.address)
        return buffer

    def close(self) -> None:
        """Free the engine and its buffers."""
        with self._lock, self._driver.current():
            if self._context is None:
                return
            self._stream.synchronize()
            self._context = None
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers.clear()
            self._uploaded.clear()
            self._engine.close()


def _is_constant(array: np.ndarray) -> bool:
    """Nobody can write to it: it is read-only and no view of another array."""
    return not array.flags.writeable and array.flags.owndata and array.flags.c_contiguous
