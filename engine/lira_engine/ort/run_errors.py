"""Tell in one line why a graph that was opened does not run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lira_engine.errors import LiraError
from lira_engine.ort.device import CPU, Device
from lira_engine.ort.gpu_errors import gpu_errors_told
from lira_engine.ort.package import ORT_ERRORS, onnxruntime, said


@contextmanager
def run_errors_told(graph: Path | str, device: Device = CPU) -> Iterator[None]:
    """Raises LiraError, which names `graph`, if ONNX Runtime cannot run it in the block, and what
    `gpu_errors_told` does for memory and the device."""
    try:
        with gpu_errors_told(device):
            yield
    except (RuntimeError, *ORT_ERRORS) as error:
        raise LiraError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {graph} ({said(error)}): it is damaged, or "
            "does not fit its bundle: build the engines again with --force; if it is a bundle's graph, or "
            "stays, copy or export the bundle again"
        ) from error
