"""Run portable graphs in an ONNX Runtime that is too old for their opset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from lira_engine.bundle.external_data import save_graph
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.package import version
from lira_engine.system.extras import PORTABLE_FROM


@contextmanager
def runnable(path: Path, stage: str) -> Iterator[Path]:
    """Yield a file that the installed ONNX Runtime runs in place of the portable graph of ``stage``.

    It is ``path`` itself; or, if the installed version is too old (on Python 3.10), the graph lowered as by
    `lira-edge build --target cpu`, which is removed when the block ends.
    """
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
