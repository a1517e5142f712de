"""External data of ONNX files: write weights beside a graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from lira_engine.errors import LiraError

EXTERNAL_FROM_BYTES = 1024


def save_graph(model: ir.Model, file: Path, written: Callable[[int], None] = lambda offset: None) -> None:
    """Write a graph, and its weights into FILE.data beside it, to be memory-mapped; small ones stay in the
    graph. Lazy weights are computed one at a time; `written` gets the bytes written before each.

    Raises LiraError if the weights were not written whole: numpy, which writes them, gives no reason if the
    disk is full, and raises nothing if only the last few bytes are lost.
    """
    data, expected = file.with_name(f"{file.name}.data"), 0

    def starts(tensor: ir.TensorProtocol, offset: int) -> None:
        nonlocal expected
        expected = max(expected, offset + tensor.nbytes)
        written(offset)

    reason = ""
    try:
        ir.save(
            model,
            file,
            external_data=data.name,
            size_threshold_bytes=EXTERNAL_FROM_BYTES,
            max_workers=1,  # each worker holds a tensor in memory
            callback=lambda tensor, info: starts(tensor, info.offset),
        )
    except OSError as error:
        if error.errno is not None:
            raise
        reason = f" ({error})"
    if reason or (expected and data.stat().st_size < expected):
        raise LiraError(f"{data} was not written whole{reason}: free some room on its disk")
