"""Compute tensors of a lowered graph by ONNX Runtime on the CPU, node by node as they stand in the file.

Nothing is fused. Where a node has no fp16 kernel on the CPU, ONNX Runtime computes it in fp32, and rounds
only what an fp16 kernel reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.ort.cuts import Cuts
from lira_engine.ort.package import ORT_ERRORS, onnxruntime, said
from lira_engine.ort.session import open_session, shrinking_arena


class PlainReference:
    """The reference of one graph. Each call opens a session of the nodes that it needs, and closes it: the
    device may need the memory (a Jetson's is the same)."""

    def __init__(self, cuts: Cuts, threads: int | None) -> None:
        self._cuts, self._threads = cuts, threads

    def values(self, names: Iterable[str], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return tensors, computed from those of `given`. Raises LiraError if ONNX Runtime does not."""
        wanted = list(dict.fromkeys(names))
        lacking = [name for name in wanted if name not in given]
        found = {name: given[name] for name in wanted if name in given}
        if not lacking:
            return found
        with self._cuts.written(lacking, given) as (file, fed), memory_errors_told():
            session = open_session(file, self._threads, prepack=False, fuse=False)
            try:
                arrays = session.run(lacking, fed, shrinking_arena())
            except ORT_ERRORS as error:
                raise LiraError(
                    f"ONNX Runtime {onnxruntime.__version__} does not compute {self._cuts.file.name}, with "
                    f"which the device is compared: {said(error)}"
                ) from None
        return {**found, **dict(zip(lacking, arrays, strict=True))}
