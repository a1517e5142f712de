"""Write the files of a bundle into a folder, and run every graph on its check vectors."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tokenizers import Tokenizer
from torch import Tensor

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.bundle.external_data import save_graph
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest, StageSpec, TensorSpec
from lira_engine.engines.accuracy import check_stage_outputs
from lira_engine.errors import LiraError
from lira_engine.ort.stage import OrtStage

from .llm_pieces import run_in_pieces
from .runnable import runnable


@dataclass(frozen=True)
class Step:
    """Progress of an export.

    ``phase``: "reference", "graph", "write", "check", "done" or "hash". ``written`` of about ``expected``
    bytes are on the disk.
    """

    stage: str
    phase: str
    written: int
    expected: int


Progress = Callable[[Step], None]
Report = Callable[[str], None]

_MAX_SHOWN = 200  # characters of onnx's message


@dataclass
class BundleWriter:
    """Writes a bundle's files into ``folder`` and collects what ``lira.json`` will say.

    ``threads``: of ONNX Runtime, which runs the graphs. None: one per core.
    """

    folder: Path
    progress: Progress
    expected_bytes: int = 0
    threads: int | None = None
    written_bytes: int = 0
    stages: dict[str, StageSpec] = field(default_factory=dict)

    def stage(self, name: str, make: Callable[[Report], tuple[ir.Model, CheckVectors]]) -> CheckVectors:
        """Write the graph and the check vectors that ``make`` returns, check both, return the vectors.

        ``make`` takes a function that reports its phases. It must not keep the graph: during the check the
        weights are on the disk only.

        Raises:
            LiraError: the graph is not valid ONNX, or its outputs differ from the reference's.
        """
        graph, vectors = make(lambda phase: self._report(name, phase))
        release_memory()
        self._report(name, "write")
        path = self.folder / f"{name}.onnx"
        spec = self._save(path, graph, vectors)
        del graph
        release_memory()
        self._report(name, "check")
        self._check_graph(name, path)
        if name == "llm":
            found = self._run_llm(path, spec, vectors)
        else:
            with (
                runnable(path, name) as file,
                OrtStage(name, file, spec, self.threads, prepack=False) as runner,
            ):
                found = runner.run(vectors.inputs)
        self._compare(name, found, vectors)
        release_memory()
        self.stages[name] = spec
        self._report(name, "done")
        return vectors

    def array(self, name: str, tensor: Tensor) -> np.ndarray:
        """Write NAME.npy and return it memory-mapped."""
        path = self.folder / f"{name}.npy"
        np.save(path, tensor.numpy(), allow_pickle=False)
        self.written_bytes += path.stat().st_size
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # NumPy raises nothing where a full disk did not take the last bytes
            raise LiraError(f"{path} was not written whole: free some room on its disk") from None

    def tokenizer(self, tokenizer: Tokenizer) -> None:
        """Write tokenizer.json."""
        text = tokenizer.to_str(pretty=True)  # `save` raises a bare Exception if the disk is full
        (self.folder / "tokenizer.json").write_text(text, encoding="utf-8", newline="\n")

    def finish(self, **facts: Any) -> Manifest:
        """Hash every file and write ``lira.json``. ``facts`` are the other fields of Manifest."""
        self._report("bundle", "hash")
        files = {
            path.relative_to(self.folder).as_posix(): FileEntry(sha256_of(path), path.stat().st_size)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(stages=self.stages, files=files, **facts)
        Manifest.from_json(manifest.to_json())  # raises what opening the bundle would raise
        (self.folder / MANIFEST_NAME).write_text(manifest.dumps(), encoding="utf-8")
        return manifest

    def _report(self, stage: str, phase: str, more: int = 0) -> None:
        self.progress(Step(stage, phase, self.written_bytes + more, self.expected_bytes))

    def _save(self, path: Path, graph: ir.Model, vectors: CheckVectors) -> StageSpec:
        data = path.with_name(f"{path.name}.data")
        save_graph(graph, path, lambda offset: self._report(path.stem, "write", offset))
        check = Path("checks") / f"{path.stem}.npz"
        (self.folder / check).parent.mkdir(exist_ok=True)
        vectors.save(self.folder / check)
        files = [file for file in (path, data, self.folder / check) if file.is_file()]
        self.written_bytes += sum(file.stat().st_size for file in files)
        inputs, outputs = _specs(graph.graph.inputs), _specs(graph.graph.outputs)
        return StageSpec(path.name, check.as_posix(), inputs, outputs)

    @staticmethod
    def _check_graph(name: str, path: Path) -> None:
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = str(error).splitlines()[0][:_MAX_SHOWN]
            raise LiraError(
                f"the graph of {name} is not valid ONNX ({reason}): this is a fault of lira-edge"
            ) from error

    def _run_llm(self, path: Path, spec: StageSpec, vectors: CheckVectors) -> dict[str, np.ndarray]:
        layers = sum(name.startswith("key_cache.") for name in spec.inputs)
        found: dict[str, np.ndarray] = {}
        for done, found in run_in_pieces(path, layers, vectors.inputs, threads=self.threads):  # noqa: B007
            self._report("llm", f"check, layer {done} of {layers}")
        return found

    @staticmethod
    def _compare(name: str, found: Mapping[str, np.ndarray], vectors: CheckVectors) -> None:
        try:
            check_stage_outputs(f"the graph of {name}", "fp32", found, vectors)
        except LiraError as error:
            raise LiraError(
                f"{error}; no bundle was written. Report this with the versions that `lira-edge doctor` "
                "prints"
            ) from None


def release_memory() -> None:
    """Return unused memory to the system.

    torch's exporter leaves modules in reference cycles, and glibc keeps freed memory below memory in use.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _specs(values: Any) -> dict[str, TensorSpec]:
    return {
        value.name: TensorSpec(
            str(value.dtype.numpy()), tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
        )
        for value in values
    }
