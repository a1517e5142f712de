"""Open the files that hold tensors, without unpickling anything else; tensors are read when asked for."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lira_engine.errors import LiraError

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as safetensors names them


class TensorFile:
    """Shapes, dtypes and lazily read tensors of one checkpoint file or of a folder of safetensors.

    Files are memory-mapped, and mapped anew after every ``REMAP_BYTES`` that were read: pages that were read
    once count as the process's memory for as long as they are mapped.
    """

    REMAP_BYTES = 256 << 20

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Set[str],
        open_file: Callable[[], Callable[[str], Tensor]],
    ) -> None:
        self.shapes = shapes
        self.dtypes = dtypes
        self._open = open_file
        self._reader: Callable[[str], Tensor] | None = None
        self._read_bytes = 0

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored; copy it where it is kept."""
        if self._reader is None or self._read_bytes > self.REMAP_BYTES:
            self._reader = None  # unmap first
            self._reader, self._read_bytes = self._open(), 0
        tensor = self._reader(name)
        self._read_bytes += tensor.nbytes
        return tensor


def safetensors_files(folder: Path) -> list[Path]:
    """The shards of a model folder, by its index where there is one.

    Raises:
        LiraError: no safetensors, a shard is missing, or the index names a file outside the folder.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise LiraError(f"{folder}: no *.safetensors found, expected the base model's weights there")
        return found
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise LiraError(f"{index}: not a safetensors index ({error!r}); download the file again") from None
    paths = []
    for name in names:
        path = folder / str(name)
        if path.name != name or name == "..":  # a link to another folder is the user's own and fine
            raise LiraError(f"{index}: names the file {name!r} outside its folder, expected plain file names")
        if not path.is_file():
            raise LiraError(f"{folder}: shard {name} is missing ({len(names)} expected); download it again")
        paths.append(path)
    return paths


def open_pth(path: Path) -> TensorFile:
    """The tensors of a state dict.

    Raises:
        LiraError: the file is damaged, or holds anything but tensors.
    """
    tensors = _load_pth(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    return TensorFile(shapes, dtypes, lambda: _load_pth(path).__getitem__)


def _load_pth(path: Path) -> dict[str, Tensor]:
    try:
        # Old-format files cannot be memory-mapped.
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise LiraError(
            f"{path}: holds more than tensors (or is truncated); expected a weights-only .pth"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0] or "it ends too soon"
        raise LiraError(f"{path}: cannot be read ({reason}); download it again") from None
    for wrapper in ("state_dict", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if isinstance(loaded, Tensor):
        loaded = {path.stem: loaded}
    found = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {str(name): tensor for name, tensor in found if isinstance(tensor, Tensor)}
    if not tensors:
        raise LiraError(f"{path}: no tensors found, expected a state dict")
    return tensors


def open_safetensors(paths: list[Path]) -> TensorFile:
    """The tensors of all shards.

    Raises:
        LiraError: a file is truncated or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    where: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    stored = opened.get_slice(name)
                    shapes[name] = tuple(stored.get_shape())
                    dtypes.add(_DTYPES.get(stored.get_dtype(), stored.get_dtype()))
                    where[name] = path
        except (SafetensorError, OSError) as error:
            raise LiraError(f"{path}: not a complete safetensors file ({error}); download it again") from None

    def open_shards() -> Callable[[str], Tensor]:
        shards: dict[Path, Any] = {}

        def read(name: str) -> Tensor:
            path = where[name]
            if path not in shards:
                shards[path] = safe_open(path, framework="pt")
            return shards[path].get_tensor(name)

        return read

    return TensorFile(shapes, dtypes, open_shards)
