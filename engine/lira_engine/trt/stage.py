"""A stage run by TensorRT, in a stream of its own."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lira_engine.bundle.manifest import StageSpec, TensorSpec
from lira_engine.cuda.driver import Buffer, Driver, Event, Stream
from lira_engine.engines.runner import Feeds, Stage, check_feeds, host_array
from lira_engine.errors import Closed
from lira_engine.trt.engine import TrtContext, TrtEngine


class TrtStage(Stage):
    """One engine. Its passes run in order in its stream, concurrently with other stages; outputs stay on the
    device, where other stages read them."""

    def __init__(self, name: str, engine: TrtEngine, spec: StageSpec) -> None:
        """Call inside `driver.current()`; `engine` must have the tensors of `spec`."""
        self.name = name
        self.input_specs: Mapping[str, TensorSpec] = spec.inputs
        self.output_specs: Mapping[str, TensorSpec] = spec.outputs
        self._engine = engine
        self._driver = engine.driver
        self._stream = self._driver.stream()
        self._copy_stream = self._driver.stream()  # copies a result out while the next pass runs
        self._context: TrtContext | None = engine.new_context(0, self._stream)
        self._inputs: dict[str, _HostInput] = {}
        self._copied_in = self._driver.event()
        self._blocks: list[Block] = []
        self._free: dict[tuple[str, int], list[Block]] = {}  # of dropped outputs, by name and bytes
        # One thread may read a mask while another one answers, or closes the stage that made its input: all
        # stages share the lock.
        self._lock = engine.driver.lock

    def start(self, feeds: Feeds) -> TrtRun:
        """Enqueue a pass. Copies arrays before it returns; the device reads other stages' outputs in place,
        when they are ready.

        Raises LiraError if the feeds are not what `input_specs` says, or of a size that the engine was not
        built for; ValueError if this stage, or the one that made an input, is closed.
        """
        check_feeds(self.name, self.input_specs, feeds)
        with self._lock, self._driver.current():
            return TrtRun(self, self._enqueue(self._open_context(), feeds))

    def fetch(self, tensor: TrtTensor) -> np.ndarray:
        """Return an output in host memory. Waits for its pass, not for later ones."""
        array = np.empty(tensor.shape, tensor.dtype)
        with self._driver.current():
            tensor.block.synchronize()
            with self._lock:
                self._open_context()
                self._driver.copy_out(array, tensor.block.buffer, self._copy_stream)
                self._copy_stream.synchronize()
        array.setflags(write=False)
        return array

    def _open_context(self) -> TrtContext:
        if self._context is None:
            raise Closed(self.name)
        return self._context

    def _enqueue(self, context: TrtContext, feeds: Feeds) -> dict[str, TrtTensor]:
        for name, tensor in feeds.items():
            context.set_shape(name, tensor.shape)
        blocks = []
        self._copied_in.synchronize()
        for name, tensor in feeds.items():
            if isinstance(tensor, TrtTensor):
                blocks.append(tensor.block)
                context.bind(name, tensor.block.buffer.address)
            else:
                context.bind(name, self._copy_in(name, host_array(tensor)))
        self._copied_in.record(self._stream)
        outputs = {name: self._output(context, name) for name in self.output_specs}
        for name, output in outputs.items():
            blocks.append(output.block)
            context.bind(name, output.block.buffer.address)
        for block in blocks:
            block.wait_in(self._stream)
        context.execute(self._stream)
        for block in blocks:
            block.record(self._stream)
        return outputs

    def _copy_in(self, name: str, array: np.ndarray) -> int:
        """Enqueue the copy of an input; return its address on the device."""
        given = self._inputs.get(name)
        if given is None or given.host.nbytes < array.nbytes:
            if given is not None:
                self._stream.synchronize()  # the previous pass may still read it
                self._inputs.pop(name).buffer.free()
            buffer = self._driver.allocate(array.nbytes)
            given = self._inputs[name] = _HostInput(self._driver.pinned((array.nbytes,), np.uint8), buffer)
        host = given.host[: array.nbytes].view(array.dtype).reshape(array.shape)
        host[...] = array
        self._driver.copy_in(given.buffer, host, self._stream)
        return given.buffer.address

    def _output(self, context: TrtContext, name: str) -> TrtTensor:
        """Return memory for an output of the next pass."""
        shape, dtype = context.shape(name), np.dtype(self.output_specs[name].dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        free = self._free.setdefault((name, size), [])
        if free:
            block = free.pop()
        else:
            block = Block(self.name, self._driver, size)
            self._blocks.append(block)
        tensor = TrtTensor(block, shape, dtype)
        weakref.finalize(tensor, free.append, block).atexit = False
        return tensor

    def close(self) -> None:
        """Free the engine, its buffers and its outputs. Waits for passes that still read them."""
        with self._lock, self._driver.current():
            if self._context is None:
                return
            self._stream.synchronize()
            self._context = None
            while self._inputs:
                self._inputs.popitem()[1].buffer.free()
            for block in self._blocks:
                block.free()
            self._blocks.clear()
            self._free.clear()
            self._engine.close()


@dataclass(frozen=True)
class TrtRun:
    """An enqueued pass."""

    _stage: TrtStage
    outputs: dict[str, TrtTensor]

    def numpy(self, name: str) -> np.ndarray:
        return self._stage.fetch(self.outputs[name])


class TrtTensor:
    """An output on the device. When it is dropped, a later pass gets its memory."""

    def __init__(self, block: Block, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.block, self.shape, self.dtype = block, shape, dtype


class Block:
    """Device memory, with an event behind the last pass that uses it, one per stream."""

    def __init__(self, stage: str, driver: Driver, size: int) -> None:
        self._stage = stage
        self._driver = driver
        self._buffer: Buffer | None = driver.allocate(size)
        self._events: dict[int, Event] = {}  # by the stream's handle

    @property
    def buffer(self) -> Buffer:
        """The memory. Raises ValueError if it was freed."""
        if self._buffer is None:
            raise Closed(self._stage)
        return self._buffer

    def wait_in(self, stream: Stream) -> None:
        """Make `stream` wait for the passes of other streams: they write what it reads next, or read what it
        overwrites."""
        for handle, event in list(self._events.items()):
            if handle != stream.handle:
                stream.wait(event)

    def record(self, stream: Stream) -> None:
        """Note that the last pass in `stream` uses the memory."""
        if stream.handle not in self._events:
            self._events[stream.handle] = self._driver.event()
        self._events[stream.handle].record(stream)

    def synchronize(self) -> None:
        """Wait for all passes that use the memory."""
        for event in list(self._events.values()):
            event.synchronize()

    def free(self) -> None:
        """Free the memory after its last pass. Call inside `driver.current()`."""
        self.synchronize()
        buffer, self._buffer = self.buffer, None
        buffer.free()
        self._events.clear()


@dataclass(frozen=True)
class _HostInput:
    """Page-locked bytes, which the device copies while the caller goes on, and their buffer."""

    host: np.ndarray
    buffer: Buffer
