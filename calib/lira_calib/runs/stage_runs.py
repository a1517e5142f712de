"""Vision stages lowered for this machine, and their runs, which are kept on disk and never made twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lira_calib.runs.session import write_lowered
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import read_graph
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.fingerprint import lowering_fingerprint
from lira_engine.engines.recipe import StageRecipe
from lira_engine.engines.runner import Closing, Feeds, Stage, Tensor, check_feeds
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.tensorrt import tensorrt_pipeline
from lira_engine.ort.stage import OrtStage
from lira_engine.system.atomic import atomic_write, readable_errors

VISION = tuple(stage for stage in STAGES if stage not in ("llm", "pixel_decoder"))
"""The stages that make a sequence's embeddings."""
_INPUT = "input."
_NONFINITE = "nonfinite"


def lowered(bundle: Bundle, stage: str, recipe: StageRecipe, folder: Path) -> Path:
    """Write a stage as `build --target cpu` would, fp32 without a recipe, into `folder`; return its file.

    With fp8, which CPUs lack, the graph is TensorRT's, in fp16: ONNX Runtime computes its outputs here, too.
    """
    if has_fp8(recipe):
        passes = tensorrt_pipeline(stage, "mixed", "decomposed", recipe=recipe)
    else:
        passes = cpu_pipeline(stage, "mixed", recipe=recipe) if recipe else cpu_pipeline(stage)
    file = folder / f"{stage}.onnx"
    write_lowered(read_graph(bundle.stage_file(stage)), passes, file)
    return file


def has_fp8(recipe: StageRecipe) -> bool:
    """Return whether a weight is stored in fp8."""
    return any(form.kind == "fp8" for form in recipe.forms.values())


def recipe_digest(recipe: StageRecipe) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 of a stage's recipe, "fp32" without one."""
    if not recipe:
        return "fp32"
    digest = hashlib.sha256(repr((sorted(recipe.forms.items()), recipe.smoothing)).encode())
    for name in sorted(recipe.tensors):
        array = recipe.tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


class LoweredStage(Closing):
    """A stage that is lowered and opened when it is first run."""

    def __init__(
        self, bundle: Bundle, stage: str, recipe: StageRecipe, work: Path, threads: int | None
    ) -> None:
        """`work`: where the lowered graph is while the stage is open."""
        self.name = stage
        files = [bundle.manifest.files[name].sha256 for name in bundle.stage_sources(stage)]
        self.digest = " ".join([recipe_digest(recipe), lowering_fingerprint(()), *files])
        self._bundle, self._recipe, self._work, self._threads = bundle, recipe, work, threads
        self._folder: TemporaryDirectory[str] | None = None
        self._opened: OrtStage | None = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return all outputs by name. Raises LiraError as a `StageRunner` does."""
        if self._opened is None:
            self._folder = TemporaryDirectory(dir=self._work, prefix=f"lowered-{self.name}-")
            file = lowered(self._bundle, self.name, self._recipe, Path(self._folder.name))
            self._opened = OrtStage(self.name, file, self._bundle.manifest.stages[self.name], self._threads)
        return self._opened.run(feeds)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._opened = self._folder = None


class StoredTensor:
    """An output of a kept run, read when it is asked for."""

    def __init__(self, file: Path, name: str) -> None:
        self.file, self.name = file, name

    def array(self) -> np.ndarray:
        return read_arrays(self.file, [self.name])[self.name]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array().shape

    @property
    def dtype(self) -> np.dtype:
        return self.array().dtype


class StoredRun:
    """A run whose outputs are in a file."""

    def __init__(self, file: Path, outputs: Sequence[str]) -> None:
        self.file = file
        self._outputs = outputs

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return {name: StoredTensor(self.file, name) for name in self._outputs}

    def numpy(self, name: str) -> np.ndarray:
        return StoredTensor(self.file, name).array()


class KeptStage(Stage):
    """A stage whose runs are kept in files, named by the stage's recipe and the inputs.

    `used` lists the files of the runs, in order; clear it to follow a part of them.
    """

    def __init__(
        self, lowered: LoweredStage, bundle: Bundle, written: Path, kept: Path | None = None
    ) -> None:
        """written: folder of new runs. kept: another with runs that need not be made again; then `written` is
        a temporary folder."""
        self.name, self.digest = lowered.name, lowered.digest
        spec = bundle.manifest.stages[self.name]
        self.input_specs, self.output_specs = spec.inputs, spec.outputs
        self.used: list[Path] = []
        self._lowered, self._written = lowered, written
        self._folders = [written] if kept is None else [written, kept]
        self._temporary = kept is not None

    def start(self, feeds: Feeds) -> StoredRun:
        name = f"{self._key(feeds)}.safetensors"
        file = next((path for folder in self._folders if (path := folder / name).is_file()), None)
        if file is None:
            file = self._written / name
            arrays = {key: _array(tensor) for key, tensor in feeds.items()}
            check_feeds(self.name, self.input_specs, arrays)
            outputs = self._lowered.run(arrays)
            # Inputs that are not another stage's outputs are kept for the statistics.
            given = {f"{_INPUT}{key}": feed for key, feed in feeds.items() if key == "pixel_values"}
            given_arrays = {key: _array(feed) for key, feed in given.items()}
            write_arrays(file, {**outputs, **given_arrays}, self.name, self._temporary)
        self.used.append(file)
        return StoredRun(file, list(self.output_specs))

    def close(self) -> None:
        """The lowered stage is closed by who made it: several may share one."""

    def _key(self, feeds: Feeds) -> str:
        digest = hashlib.sha256(f"{self.name} {self.digest}".encode())
        for name in sorted(feeds):
            tensor = feeds[name]
            digest.update(f"\n{name} ".encode())
            if isinstance(tensor, StoredTensor):
                digest.update(f"{tensor.file.stem} {tensor.name}".encode())
            else:
                array = np.ascontiguousarray(_array(tensor))
                digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()[:32]


def kept_input(file: Path, name: str) -> np.ndarray:
    """Return an input of a kept run."""
    return read_arrays(file, [_INPUT + name])[_INPUT + name]


def nonfinite_of(file: Path) -> str | None:
    """Return STAGE.TENSOR of the first output of a kept run that is not finite, None if all are."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        found: str = (opened.metadata() or {}).get(_NONFINITE, "")
    return found or None


def first_nonfinite(where: str, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Return WHERE.NAME of the first array of floats that has a NaN or an infinity, None if there is none."""
    floats = (name for name, array in arrays.items() if array.dtype.kind == "f")
    return next((f"{where}.{name}" for name in floats if not np.isfinite(arrays[name]).all()), None)


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray], where: str, temporary: bool = False) -> None:
    """Write arrays into a file that appears whole or not at all. `temporary`: no later process reads it."""
    from safetensors.numpy import save

    file.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    about = {_NONFINITE: first_nonfinite(where, plain) or ""}
    if temporary:  # waiting for the disk takes longer than a small model's run
        with readable_errors(file):
            file.write_bytes(save(plain, about))
        return
    with atomic_write(file) as stream:
        stream.write(save(plain, about))


def read_arrays(file: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Return some arrays of a file, or all."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        return {name: opened.get_tensor(name) for name in (opened.keys() if names is None else names)}


def _array(tensor: Tensor) -> np.ndarray:
    if isinstance(tensor, StoredTensor):
        return tensor.array()
    assert isinstance(tensor, np.ndarray)
    return tensor
