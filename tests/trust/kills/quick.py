"""What makes commands quick for the tests, where no file is written; and what is wrong on purpose."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import huggingface_hub.constants
import onnx_ir as ir

import lira_bench.accuracy.output
import lira_engine.build
import lira_export.graphs.trace as tracing
from lira_calib.choosing import latency
from lira_calib.methods import statistics
from lira_export import hub
from lira_export.export import export_checkpoint

CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "lira-nano"


def remember_traces() -> None:
    """Export lira-nano once; from then on torch's exporter gives what it gave."""
    real = tracing.trace
    known: dict[str, Any] = {}

    def trace(name: str, *arguments: Any, **options: Any) -> ir.Model:
        if name not in known:
            known[name] = ir.serde.serialize_model(real(name, *arguments, **options))
        return ir.serde.deserialize_model(known[name])

    for name, module in list(sys.modules.items()):
        if name.startswith("lira_export") and getattr(module, "trace", None) is real:
            vars(module)["trace"] = trace
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(CHECKPOINT, Path(folder, "bundle"))


def write_in_place() -> None:
    """Plant writers that write where the result belongs."""

    @contextmanager
    def atomic_directory(target: Path, *_: object, **__: object) -> Iterator[Path]:
        target.mkdir(parents=True, exist_ok=True)
        yield target

    @contextmanager
    def atomic_write(target: Path) -> Iterator[IO[bytes]]:
        with open(target, "wb") as file:
            yield file
            os.fsync(file.fileno())

    vars(lira_engine.build)["atomic_directory"] = atomic_directory
    vars(lira_bench.accuracy.output)["atomic_write"] = atomic_write


def download(repository: str) -> int:
    """Download all files of a repository as `lira-edge export hub:...` does; print their paths."""
    huggingface_hub.constants.HF_HUB_CACHE = os.path.abspath("hub")
    tree = hub.open_hub(f"hub:{repository}")
    for path in hub.download({"all": (tree, tree.names)})["all"][0]:
        print(path)
    return 0


latency.ROUNDS = 1
statistics.METHODS = ("minmax", "percentile")
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
if not os.environ.get("LIRA_NO_EXPORT"):
    remember_traces()
