"""Tensor files: names, shapes and dtypes when opened, tensors when asked for. Opens safetensors.

Opening does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lira_engine.errors import LiraError

from .file_kinds import refuse_foreign
from .json_files import read_json

if TYPE_CHECKING:
    from torch import Tensor

# What a weight may be stored as. Integers and eight-bit floats are quantized: their scales lie elsewhere.
FLOATS = ("float16", "bfloat16", "float32", "float64")
INDEX = "model.safetensors.index.json"
# safetensors' name of a dtype -> torch's; others are shown as they are.
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
_SHOWN = 60  # characters of a file's name
_PIECE = 4096  # values searched at a time for one that is not finite


class TensorFile:
    """The tensors of one checkpoint file, or of a folder of safetensors.

    Files are memory-mapped, and mapped again after ``REMAP_BYTES`` were read: pages that were read count as
    the process's memory until the file is unmapped.

    Attributes:
        shapes: name -> shape. files: name -> the file that holds it.
        dtypes: name -> torch's name of the dtype, after "sparse", "meta" or "quantised" where it applies.
    """

    REMAP_BYTES = 256 << 20

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, str],
        files: Mapping[str, Path],
        open_file: Callable[[], Callable[[str], Tensor]],
    ) -> None:
        self.shapes = shapes
        self.dtypes = dtypes
        self.files = files
        self._open = open_file
        self._reader: Callable[[str], Tensor] | None = None
        self._read_bytes = 0

    def read(self, name: str) -> Tensor:
        """Return a copy of a tensor in fp32.

        Raises:
            LiraError: a value is not finite, or too large for fp32.
        """
        import torch

        if self._reader is None or self._read_bytes > self.REMAP_BYTES:
            self._reader = None  # unmap first
            self._reader, self._read_bytes = self._open(), 0
        stored = self._reader(name).detach()
        self._read_bytes += stored.nbytes
        tensor = stored.to(torch.float32, copy=True)
        if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
            raise LiraError(f"{self.files[name]}: {name} {_not_finite(tensor)}")
        return tensor


def _not_finite(tensor: Tensor) -> str:
    """Return how many values are not finite, and where the first one is."""
    import torch

    count, first = 0, None
    for i, part in enumerate(tensor.reshape(-1).split(_PIECE)):
        wrong = part.isfinite().logical_not_()
        if first is None and bool(wrong.any()):
            first = i * _PIECE + int(wrong.int().argmax())
        count += int(wrong.sum())
    assert first is not None
    value = float(tensor.reshape(-1)[first])
    place = [int(i) for i in torch.unravel_index(torch.tensor(first), tensor.shape)]
    return (
        f"has {count} of {tensor.numel()} values that are not finite, the first one ({value}) at {place}; "
        "expected finite fp32 numbers: download the file again, or take an earlier checkpoint of the training"
    )


def open_safetensors(paths: list[Path], weight_map: Mapping[str, str] | None = None) -> TensorFile:
    """Open all shards. ``weight_map`` (tensor -> file name) decides where two of them hold a tensor.

    Raises:
        LiraError: a file is damaged or no safetensors, two files hold a tensor and nothing decides, or a
            tensor is not in the file that the index names.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    where: dict[str, Path] = {}
    for path in paths:
        try:
            refuse_foreign(path)
            with safe_open(path, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    if weight_map is not None and weight_map.get(name, path.name) != path.name:
                        continue
                    if name in where:
                        raise LiraError(
                            f"{where[name]} and {path.name} both hold {name}, expected one of them to: "
                            f"remove the one that is not the base model's, or add its {INDEX}"
                        )
                    stored = opened.get_slice(name)
                    shapes[name] = tuple(stored.get_shape())
                    dtypes[name] = _DTYPES.get(stored.get_dtype(), stored.get_dtype())
                    where[name] = path
        except (SafetensorError, OSError) as error:
            raise LiraError(
                f"{path} is not a complete safetensors file ({error}): download it again"
            ) from None
    for name, file in (weight_map or {}).items():
        if name not in where:
            folder = paths[0].parent
            raise LiraError(
                f"{folder / INDEX} says that {file} holds {name}, which it does not: download both again"
            )

    def open_shards() -> Callable[[str], Tensor]:
        shards: dict[Path, Any] = {}

        def read(name: str) -> Tensor:
            path = where[name]
            if path not in shards:
                shards[path] = safe_open(path, framework="pt")
            tensor: Tensor = shards[path].get_tensor(name)
            return tensor

        return read

    return TensorFile(shapes, dtypes, where, open_shards)


def open_base(folder: Path) -> TensorFile:
    """Open a model folder: the shards that its index names, or all ``*.safetensors``.

    Raises:
        LiraError: see :func:`open_safetensors`; there are no safetensors, a shard is missing, or the index
            names a file outside the folder.
    """
    index = folder / INDEX
    if index.is_file():
        weight_map = _weight_map(index)
        return open_safetensors(_shards(folder, weight_map), weight_map)
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        other = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        instead = f" but {other}" if other else ""
        raise LiraError(
            f"{folder}: no *.safetensors found{instead}, expected the base model's weights there: download "
            "them from its repository"
        )
    return open_safetensors(found)


def stored_dtype(tensors: TensorFile) -> str:
    """Return the dtype of all tensors, as torch calls it; float32 if they differ."""
    dtypes = set(tensors.dtypes.values())
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def unlisted_shards(folder: Path) -> dict[str, str]:
    """Return tensor -> file for the safetensors in ``folder`` that its index does not name."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    named = set(_weight_map(index).values())
    others = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in named]
    found: dict[str, str] = {}
    for path in others:
        try:
            found |= dict.fromkeys(open_safetensors([path]).shapes, path.name)
        except LiraError:  # no part of the model
            continue
    return found


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, "a safetensors index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise LiraError(
            f"{index} is not a safetensors index, expected file names by tensor under weight_map: download "
            "the file again"
        )
    return weight_map


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes
        return False


def _shards(folder: Path, weight_map: Mapping[str, str]) -> list[Path]:
    names = sorted(set(weight_map.values()))
    paths = [folder / name for name in names]
    for name, path in zip(names, paths, strict=True):
        if path.name != name or name == "..":  # a link to another folder is the user's own and fine
            raise LiraError(
                f"{folder / INDEX}: names the file {name!r} outside its folder, expected plain file names"
            )
        if not _is_file(path):
            shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
            raise LiraError(f"{folder}: shard {shown} is missing ({len(names)} expected); download it again")
    return paths
