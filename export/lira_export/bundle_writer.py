"""Writes the files of a bundle into a folder; every graph is run on its check vectors before it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tokenizers import Tokenizer
from torch import Tensor

from lira_engine.build import accepted_error, relative_error
from lira_engine.errors import LiraError
from lira_engine.manifest import MANIFEST_NAME, FileEntry, Manifest, StageSpec, TensorSpec
from lira_engine.ort import OrtStage
from lira_engine.verify import sha256_of

from .checks import Vectors

Progress = Callable[[str, str], None]
"""Called with a stage's name and what happens to it now: "reference", "graph", "write", "check" or "done"."""

_EXTERNAL_FROM_BYTES = 1024
_MAX_SHOWN = 200


@dataclass
class BundleWriter:
    """Fills ``folder``; what it wrote is in ``stages`` and, after :meth:`finish`, in ``lira.json``."""

    folder: Path
    progress: Progress
    stages: dict[str, StageSpec] = field(default_factory=dict)

    def stage(self, name: str, graph: ir.Model, vectors: Vectors) -> dict[str, np.ndarray]:
        """Write a stage's graph, weights and check vectors; return what ONNX Runtime makes of the inputs.

        Raises:
            LiraError: the graph is not valid ONNX, or its outputs are not the reference's.
        """
        self.progress(name, "write")
        path = self.folder / f"{name}.onnx"
        # Always beside the graph: no size is a special case, and a reader can map the weights into memory.
        ir.save(graph, path, external_data=f"{name}.onnx.data", size_threshold_bytes=_EXTERNAL_FROM_BYTES)
        check = Path("checks") / f"{name}.npz"
        (self.folder / check).parent.mkdir(exist_ok=True)
        vectors.save(self.folder / check)
        spec = StageSpec(path.name, check.as_posix(), _specs(graph.graph.inputs), _specs(graph.graph.outputs))
        self.progress(name, "check")
        self._check_graph(name, path)
        found = self._check_outputs(name, path, spec, vectors)
        self.stages[name] = spec
        self.progress(name, "done")
        return found

    def array(self, name: str, tensor: Tensor) -> np.ndarray:
        """Write a float32 array and return it memory-mapped."""
        path = self.folder / f"{name}.npy"
        np.save(path, tensor.numpy(), allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def tokenizer(self, tokenizer: Tokenizer) -> None:
        """Write tokenizer.json."""
        tokenizer.save(str(self.folder / "tokenizer.json"))

    def finish(self, **facts: Any) -> Manifest:
        """Hash every file and write ``lira.json``; ``facts`` are the Manifest's other fields."""
        files = {
            path.relative_to(self.folder).as_posix(): FileEntry(sha256_of(path), path.stat().st_size)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(stages=self.stages, files=files, **facts)
        Manifest.from_json(manifest.to_json())  # refuse now what would be refused when the bundle is opened
        (self.folder / MANIFEST_NAME).write_text(manifest.dumps(), encoding="utf-8")
        return manifest

    @staticmethod
    def _check_graph(name: str, path: Path) -> None:
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = str(error).splitlines()[0][:_MAX_SHOWN]
            raise LiraError(
                f"the graph of {name} is not valid ONNX ({reason}): this is a fault of lira-edge"
            ) from error

    @staticmethod
    def _check_outputs(name: str, path: Path, spec: StageSpec, vectors: Vectors) -> dict[str, np.ndarray]:
        feeds = dict(vectors.inputs)
        for missing in spec.inputs.keys() - feeds.keys():  # caches: they start empty
            tensor = spec.inputs[missing]
            feeds[missing] = np.zeros(tensor.shape, tensor.dtype)  # type: ignore[arg-type]
        with OrtStage(name, path, spec) as runner:
            found = runner.run(feeds)
        for output, expected in vectors.outputs.items():
            error = relative_error(found[output], expected)
            limit = accepted_error("fp32", vectors.noise.get(output, 0.0))
            if not error <= limit:
                raise LiraError(
                    f"the graph of {name} is wrong: its output {output} differs from the torch reference by "
                    f"{error:.1e} of the largest value, at most {limit:.0e} is accepted; no bundle was "
                    "written. Report this with the versions that `lira-edge doctor` prints"
                )
        return found


def _specs(values: Any) -> dict[str, TensorSpec]:
    return {
        value.name: TensorSpec(
            str(value.dtype.numpy()), tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
        )
        for value in values
    }
