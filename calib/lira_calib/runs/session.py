"""Run a graph that is in memory: lower it for this CPU, write it into a folder for a while, open it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lira_engine.bundle.external_data import save_graph
from lira_engine.lowering.pipeline import Pass, apply
from lira_engine.ort.device import CPU
from lira_engine.ort.package import onnxruntime
from lira_engine.ort.run_errors import run_errors_told
from lira_engine.ort.session import bind_input, bind_output, open_session, run_options


class Session:
    """An open graph. Its outputs are handed out one at a time, so that large ones do not add up."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs = [tensor.name for tensor in session.get_inputs()]

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        shared: Mapping[str, np.ndarray] | None = None,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Run the graph and yield `outputs` by name, in their order; each array is freed after its turn.

        feeds: may hold more than the graph reads. shared: arrays that outputs of these names are written to;
        they may be inputs too.
        """
        binding = self._session.io_binding()
        kept = {name: np.ascontiguousarray(feeds[name]) for name in self.inputs}
        for name, array in kept.items():
            bind_input(binding, name, array)
        shared = shared or {}
        for name, array in shared.items():
            bind_output(binding, name, array)
        for name in outputs:
            binding.bind_output(name, "cpu")
        with run_errors_told("a part of the bundle's graphs"):
            self._session.run_with_iobinding(binding, run_options(CPU))
            values = list(reversed(binding.get_outputs()[len(shared) :]))
        binding.clear_binding_outputs()
        for name in outputs:
            value = values.pop()
            yield name, value.numpy()
            del value


@contextmanager
def opened(
    model: ir.Model, passes: Sequence[Pass], folder: Path, threads: int | None = None
) -> Iterator[Session]:
    """Lower `model`, which is changed, by `passes`, and open it; its file is gone when the block ends.

    Raises LiraError if the graph cannot be lowered, written or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="graph-", dir=folder) as temporary:
        file = Path(temporary, "graph.onnx")
        write_lowered(model, passes, file)
        session = Session(open_session(file, threads))
        try:
            yield session
        finally:
            del session._session  # frees the weights before the file goes


def write_lowered(model: ir.Model, passes: Sequence[Pass], file: Path) -> None:
    """Lower `model`, which is changed, by `passes`, and write it. Raises LiraError if either fails."""
    stored = [value.const_value for value in model.graph.initializers.values()]
    try:
        save_graph(apply(model, passes), file)
    finally:
        for one in stored:
            release(one)


def release_weights(model: ir.Model) -> None:
    """Let the system have the memory of a graph's weights back; they are read anew when they are needed."""
    for value in model.graph.initializers.values():
        release(value.const_value)


def release(weight: ir.TensorProtocol | None) -> None:
    """Let the system have the memory of a weight back.

    A weight in a file stays mapped for as long as its tensor exists, and what was read counts as memory of
    the process.
    """
    if isinstance(weight, ir.ExternalTensor):
        with suppress(BufferError):  # somebody still holds the array
            weight.release()
