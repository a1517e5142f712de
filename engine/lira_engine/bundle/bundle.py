"""Open a bundle: check its folder against its manifest, and hand out its parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np

from lira_engine.bundle.arrays import map_array
from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.bundle.integrity import Verify, confined, verify_folder
from lira_engine.bundle.manifest import MANIFEST_NAME, MEND, Manifest
from lira_engine.bundle.unchanged import State, states
from lira_engine.errors import LiraError
from lira_engine.system.text import check_path

READ_AT_ONCE = 16 << 20
"""Bytes of an array up to which it is read, not mapped: then it does not change with its file."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `path` is the folder, `manifest` its `lira.json`, `reads` the external data files of
    each ONNX file, `verified` the state in which each listed file was verified (bundle.unchanged)."""

    path: Path
    manifest: Manifest
    reads: Mapping[str, Sequence[str]]
    verified: Mapping[Path, State]

    @classmethod
    def open(cls, path: PathLike[str] | str, verify: Verify = "hashes") -> Bundle:
        """Read `lira.json` and check the folder against it (`verify`: see `verify_folder`).

        Raises LiraError if a file is missing, altered or outside the folder, or the format is newer.
        """
        if not isinstance(path, (str, PathLike)):
            raise LiraError(f"the bundle is of type {type(path).__name__}; expected a path")
        path = Path(path)
        check_path(path)
        if not path.is_dir():
            raise LiraError(
                f"{path} is not a folder, expected a bundle: "
                "make one with `lira-edge export CHECKPOINT_DIR -o BUNDLE`"
            )
        manifest = Manifest.load(path / MANIFEST_NAME)
        before = states(path / name for name in manifest.files)
        return cls(path, manifest, verify_folder(path, manifest.files, MEND, verify), before)

    @cached_property
    def embeddings(self) -> np.ndarray:
        """Token embeddings [V, C] float32 or float16. A large table is memory-mapped: only the rows in use
        are read."""
        model = self.manifest.model
        return self._array("embeddings.npy", (model.vocab_size, model.hidden_size), ("float32", "float16"))

    @cached_property
    def separators(self) -> np.ndarray:
        """Embeddings [2, C] float32 that separate tile features from pixel tokens, and these from query
        tokens."""
        return self._array("separators.npy", (2, self.manifest.model.hidden_size))

    @property
    def tokenizer_file(self) -> Path:
        return self._listed("tokenizer.json")

    def stage_file(self, stage: str) -> Path:
        """Return the path of a stage's portable graph."""
        return self._listed(self.manifest.stages[stage].file)

    def check_vectors(self, stage: str) -> CheckVectors:
        """Return a stage's recorded inputs and outputs. Raises LiraError as `CheckVectors.load` does."""
        spec = self.manifest.stages[stage]
        return CheckVectors.load(self._listed(spec.check), spec)

    @property
    def vectors_digest(self) -> str:
        """Digest of all stages' check vectors: what passed those of another bundle did not pass these."""
        listed = [self.manifest.files[stage.check].sha256 for stage in self.manifest.stages.values()]
        return hashlib.sha256(" ".join(listed).encode()).hexdigest()

    def engine_folder(self, target: str, precision: str) -> Path:
        """Return the folder of a target's engines, which need not exist. Raises LiraError if a link on its
        path leads out of the bundle."""
        return confined(self.path, f"engines/{target}-{precision}")

    def stage_sources(self, stage: str) -> tuple[str, ...]:
        """Return the listed files that a stage's engine is built from: its graph and external data."""
        file = self.manifest.stages[stage].file
        return (file, *sorted(self.reads[file]))

    def mapped(self) -> dict[Path, str]:
        """Return the SHA-256 of each array file that stays mapped."""
        name = "embeddings.npy"
        if not isinstance(self.embeddings, np.memmap):
            return {}
        return {self.path / name: self.manifest.files[name].sha256}

    def portable_files(self) -> dict[Path, str]:
        """Return the SHA-256 of all portable graphs and of their external data, which stays mapped."""
        names = {name for stage in self.manifest.stages for name in self.stage_sources(stage)}
        return {self.path / name: self.manifest.files[name].sha256 for name in sorted(names)}

    def _listed(self, name: str) -> Path:
        if name not in self.manifest.files:
            raise LiraError(f"{self.path / MANIFEST_NAME} lists no {name}; {MEND}")
        return confined(self.path, name)

    def _array(self, name: str, shape: tuple[int, ...], dtypes: Sequence[str] = ("float32",)) -> np.ndarray:
        file = self._listed(name)
        array = map_array(file, MEND)
        if array.shape != shape or array.dtype.name not in dtypes:
            found = f"{array.dtype} {array.shape}"
            raise LiraError(f"{file} holds {found}, expected {' or '.join(dtypes)} {shape}; {MEND}")
        return np.array(array) if array.nbytes <= READ_AT_ONCE else array
