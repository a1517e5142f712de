"""Open the files that hold tensors, without unpickling anything else; tensors are read when asked for."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lira_engine.errors import LiraError

from .file_kinds import foreign_kind, not_a_pth, tensors_only_command
from .json_files import read_json

# What a weight may be stored as. Integers are codes without their scales, and so are eight-bit floats.
FLOATS = ("float16", "bfloat16", "float32", "float64")
INDEX = "model.safetensors.index.json"
# As safetensors names what it stores; the rest is shown as it is.
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
_WRAPPERS = ("state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before names
_PIECE = 1 << 20
_ROWS = 4096  # looked at at once for what is not finite


class TensorFile:
    """Shapes, dtypes and lazily read tensors of one checkpoint file or of a folder of safetensors.

    Files are memory-mapped, and mapped anew after every ``REMAP_BYTES`` that were read: pages that were read
    once count as the process's memory for as long as they are mapped.

    Attributes:
        shapes: name -> shape. files: name -> the file that holds it.
        dtypes: name -> as torch calls it, after "sparse", "meta" or "quantised" where the tensor is one.
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
        """A tensor in fp32, a copy.

        Raises:
            LiraError: a value is not finite, or too large for fp32.
        """
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
    """How many values are not finite, and where the first one is."""
    count, first = 0, None
    for row, part in enumerate(tensor.reshape(-1).split(_ROWS)):
        wrong = part.isfinite().logical_not_()
        if first is None and bool(wrong.any()):
            first = row * _ROWS + int(wrong.int().argmax())
        count += int(wrong.sum())
    assert first is not None
    value = float(tensor.reshape(-1)[first])
    place = [int(i) for i in torch.unravel_index(torch.tensor(first), tensor.shape)]
    return (
        f"has {count} of {tensor.numel()} values that are not finite, the first one ({value}) at {place}; "
        "expected finite fp32 numbers: download the file again, or take an earlier checkpoint of the training"
    )


def open_pth(path: Path) -> TensorFile:
    """The tensors of a state dict.

    Raises:
        LiraError: the file is damaged, something else, or holds anything but tensors.
    """
    tensors = _load_pth(path, check=True)
    return TensorFile(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: _stored_as(tensor) for name, tensor in tensors.items()},
        dict.fromkeys(tensors, path),
        lambda: _load_pth(path).__getitem__,
    )


def _stored_as(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized:
        return f"quantised {dtype}"
    if tensor.device.type == "meta":
        return f"meta {dtype}"
    return dtype if tensor.layout == torch.strided and not tensor.is_nested else f"sparse {dtype}"


def _load_pth(path: Path, check: bool = False) -> dict[str, Tensor]:
    try:
        if check:
            kind = not_a_pth(path)
            if kind is not None:
                raise LiraError(f"{path} is {kind}")
        zipped = zipfile.is_zipfile(path)  # old-format files cannot be memory-mapped
        if check and zipped:
            _check_records(path)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of storages that are deprecated: what is in them is checked here
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise LiraError(
            f"{path} holds more than tensors, expected nothing else; if you trust it, replace it by them: "
            f"{tensors_only_command(path)}"
        ) from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        NotImplementedError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).partition("\n")[0][:120] or "it ends too soon"
        raise LiraError(f"{path} cannot be read ({reason}): download the file again") from None
    return _state_dict(path, loaded)


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if isinstance(loaded, Tensor):
        loaded = {path.stem: loaded}
    found = loaded if isinstance(loaded, dict) else {}
    tensors = {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if not tensors:
        inner = next(
            (key for key, value in found.items() if isinstance(value, dict) and _holds_tensors(value)), None
        )
        keys = ", ".join(str(key) for key in found)[:60] or type(loaded).__name__
        mend = f": {tensors_only_command(path, inner)}" if isinstance(inner, str) else ""
        raise LiraError(
            f"{path}: no tensors found but {keys}, expected a state dict, or one under state_dict{mend}"
        )
    while any(all(name.startswith(prefix) for name in tensors) for prefix in _PREFIXES):
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors


def _holds_tensors(values: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in values.values())


def _check_records(path: Path) -> None:
    """The zip's own checksums, which torch does not look at. 0 is what torch writes where it computed none.

    Raises:
        LiraError: a record is not what was written, or compressed, which torch cannot map.
    """
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise LiraError(
                    f"{path}: its record {record.filename} is compressed, expected what torch.save writes: "
                    "load it with torch and save it again"
                )
            if not record.CRC:
                continue
            try:
                with archive.open(record) as file:
                    while file.read(_PIECE):
                        pass
            except zipfile.BadZipFile:
                raise LiraError(
                    f"{path} is damaged: its record {record.filename} does not have the checksum that it was "
                    "written with (CRC-32): download the file again"
                ) from None


def open_safetensors(paths: list[Path], weight_map: Mapping[str, str] | None = None) -> TensorFile:
    """The tensors of all shards; where two hold one, ``weight_map`` (tensor -> file name) decides.

    Raises:
        LiraError: a file is damaged or something else, a tensor lies in two files and nothing decides, or not
            in the one that the index names.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    where: dict[str, Path] = {}
    for path in paths:
        try:
            kind = foreign_kind(path)
            if kind is not None:
                raise LiraError(f"{path} is {kind}")
            with safe_open(path, framework="pt") as opened:
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
    """The tensors of a model folder: the shards that its index names, or all of its ``*.safetensors``.

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


def unlisted_shards(folder: Path) -> dict[str, str]:
    """Tensor -> file, of the safetensors in ``folder`` that its index does not name."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    named = set(_weight_map(index).values())
    others = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in named]
    found: dict[str, str] = {}
    for path in others:
        try:
            found |= dict.fromkeys(open_safetensors([path]).shapes, path.name)
        except LiraError:  # nobody asked for this file
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


def _shards(folder: Path, weight_map: Mapping[str, str]) -> list[Path]:
    names = sorted(set(weight_map.values()))
    paths = [folder / name for name in names]
    for name, path in zip(names, paths, strict=True):
        if path.name != name or name == "..":  # a link to another folder is the user's own and fine
            raise LiraError(
                f"{folder / INDEX}: names the file {name!r} outside its folder, expected plain file names"
            )
        if not path.is_file():
            raise LiraError(f"{folder}: shard {name} is missing ({len(names)} expected); download it again")
    return paths
