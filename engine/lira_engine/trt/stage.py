"""A stage run by TensorRT, in a stream of its own."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lira_engine.bundle.manifest import StageSpec, TensorSpec
from lira_engine.engines.runner import Feeds, Stage, check_feeds, host_array
from lira_engine.errors import Closed
from lira_engine.trt.driver import Buffer, Driver, Event, Stream
from lira_engine.trt.engine import TrtContext, TrtEngine


class TrtStage(Stage):
    """One engine. Passes follow each other in its stream and beside those of other stages; what one makes
    stays on the device, for other stages to read there."""

    def __init__(self, name: str, engine: TrtEngine, spec: StageSpec) -> None:
        """Made inside `driver.current()`; `engine` has the tensors of `spec`."""
        self.name = name
        self.input_specs: Mapping[str, TensorSpec] = spec.inputs
        self.output_specs: Mapping[str, TensorSpec] = spec.outputs
        self._engine = engine
        self._driver = engine.driver
        self._stream = self._driver.stream()
        self._out = self._driver.stream()  # a result that is there is not kept waiting by the next pass
        self._context: TrtContext | None = engine.new_context(0, self._stream)
        self._inputs: dict[str, _HostInput] = {}
        self._copied_in = self._driver.event()
        self._blocks: list[Block] = []
        self._free: dict[tuple[str, int], list[Block]] = {}  # of outputs that are no more, by name and bytes
        # A mask may be looked at from one thread while another one answers, or closes the stage that made
        # what it reads: the lock is that of all stages.
        self._lock = engine.driver.lock

    def start(self, feeds: Feeds) -> TrtPass:
        """Enqueue a pass. Arrays are copied before this returns; other stages' outputs are read where they
        are, as soon as they are there.

        Raises LiraError where the feeds are not what `input_specs` says, or of a size that the engine was not
        built for; ValueError where this stage, or the one that made an input, is closed.
        """
        check_feeds(self.name, self.input_specs, feeds)
        with self._lock, self._driver.current():
            return TrtPass(self, self._enqueue(self._open_context(), feeds))

    def fetch(self, tensor: TrtTensor) -> np.ndarray:
        """An output of this stage in host memory. Waits for its pass, not for those behind it."""
        array = np.empty(tensor.shape, tensor.dtype)
        with self._driver.current():
            tensor.block.synchronize()
            with self._lock:
                self._open_context()
                self._driver.copy_out(array, tensor.block.buffer, self._out)
                self._out.synchronize()
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
            block.mark(self._stream)
        return outputs

    def _copy_in(self, name: str, array: np.ndarray) -> int:
        """Enqueue the copy of an input; returns where it lies then."""
        given = self._inputs.get(name)
        if given is None or given.host.nbytes < array.nbytes:
            if given is not None:
                self._stream.synchronize()  # the pass before may still read it
                self._inputs.pop(name).buffer.free()
            buffer = self._driver.allocate(array.nbytes)
            given = self._inputs[name] = _HostInput(self._driver.pinned((array.nbytes,), np.uint8), buffer)
        host = given.host[: array.nbytes].view(array.dtype).reshape(array.shape)
        host[...] = array
        self._driver.copy_in(given.buffer, host, self._stream)
        return given.buffer.address

    def _output(self, context: TrtContext, name: str) -> TrtTensor:
        """Memory for an output of the next pass."""
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
        """Free the engine, its buffers, and its outputs. Waits for who still reads them."""
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
class TrtPass:
    """A pass that was enqueued."""

    _stage: TrtStage
    outputs: dict[str, TrtTensor]

    def numpy(self, name: str) -> np.ndarray:
        return self._stage.fetch(self.outputs[name])


class TrtTensor:
    """An output on the device. When it is dropped, its memory goes to a later pass."""

    def __init__(self, block: Block, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.block, self.shape, self.dtype = block, shape, dtype


class Block:
    """Device memory, and marks in the streams behind the passes that use it."""

    def __init__(self, stage: str, driver: Driver, size: int) -> None:
        self._stage = stage
        self._driver = driver
        self._buffer: Buffer | None = driver.allocate(size)
        self._marks: dict[int, Event] = {}  # by the stream's handle

    @property
    def buffer(self) -> Buffer:
        """Raises ValueError when it was freed."""
        if self._buffer is None:
            raise Closed(self._stage)
        return self._buffer

    def wait_in(self, stream: Stream) -> None:
        """Let `stream` wait for those passes of other streams: one made what it reads, or reads what it is
        about to overwrite."""
        for handle, mark in list(self._marks.items()):
            if handle != stream.handle:
                stream.wait(mark)

    def mark(self, stream: Stream) -> None:
        """A pass that uses the memory was enqueued last in `stream`."""
        if stream.handle not in self._marks:
            self._marks[stream.handle] = self._driver.event()
        self._marks[stream.handle].record(stream)

    def synchronize(self) -> None:
        """Wait for all of those passes."""
        for mark in list(self._marks.values()):
            mark.synchronize()

    def free(self) -> None:
        """Inside `driver.current()`."""
        self.synchronize()
        buffer, self._buffer = self.buffer, None
        buffer.free()
        self._marks.clear()


@dataclass(frozen=True)
class _HostInput:
    """Page-locked bytes, which the device reads while the caller goes on, and where they go."""

    host: np.ndarray
    buffer: Buffer
