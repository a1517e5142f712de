"""Portable graphs as the installed ONNX Runtime reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from lira_engine.bundle.external_data import save_graph
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.library import version
from lira_engine.system.extras import PORTABLE_FROM


@contextmanager
def runnable(path: Path, stage: str) -> Iterator[Path]:
    """The file of a portable graph of ``stage`` that ONNX Runtime is given while the block runs: ``path``
    itself, or where that is too new for it, as on Python 3.10, the graph in the operators that
    `lira-edge build --target cpu` uses."""
    if version() >= PORTABLE_FROM:
        yield path
        return
    lowered = path.with_name(f".{path.stem.lstrip('.')}.lowered.onnx")
    try:
        save_graph(apply(ir.load(path), cpu_pipeline(stage)), lowered)
        yield lowered
    finally:
        for file in (lowered, lowered.with_name(f"{lowered.name}.data")):
            file.unlink(missing_ok=True)
