"""Open the files of ``torch.save`` without unpickling anything but tensors."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lira_engine.errors import LiraError, memory_errors_told

from .file_kinds import makes_bytes, most_values, not_a_pth, refuse_foreign, tensors_only_command
from .tensor_files import TensorFile

_WRAPPERS = ("state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile put these before names
_PIECE = 1 << 20


def open_pth(path: Path) -> TensorFile:
    """Open a file with a state dict.

    Raises:
        LiraError: the file is damaged, no file of ``torch.save``, or holds anything but tensors.
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
            refuse_foreign(path, not_a_pth)
        zipped = zipfile.is_zipfile(path)  # old-format files cannot be memory-mapped
        if check:
            (_check_records if zipped else _check_storages)(path)
        if check and makes_bytes(path):
            raise pickle.UnpicklingError
        with warnings.catch_warnings(), memory_errors_told():
            warnings.simplefilter("ignore")  # about deprecated storages
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise LiraError(
            f"{path} holds more than tensors, expected nothing else; if you trust it, replace it by them: "
            f"{tensors_only_command(path)}"
        ) from None
    except LiraError:
        raise
    except Exception as error:  # on damaged bytes, torch's unpickler raises any exception
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
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
    for name, tensor in tensors.items():
        _check_stored(path, name, tensor)
    while any(all(name.startswith(prefix) for name in tensors) for prefix in _PREFIXES):
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors


def _check_stored(path: Path, name: str, tensor: Tensor) -> None:
    """Raise LiraError if a tensor's values are not all in the file: a view that repeats one value a billion
    times takes a few bytes there."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type == "meta":
        return  # refused as what they are, where a weight is looked for
    stored, needed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if needed > stored:
        raise LiraError(
            f"{path}: {name} has the shape {list(tensor.shape)}, which needs {needed} bytes, and {stored} in "
            "the file, expected all of its values: load it with torch, and save its contiguous copy"
        )


def _holds_tensors(values: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in values.values())


def _check_storages(path: Path) -> None:
    """Check what an old-format file says of sizes: torch allocates it before it reads a value.

    Raises:
        LiraError: a storage has more values than the file has bytes.
    """
    values, there = most_values(path), path.stat().st_size
    if values > there:
        raise LiraError(
            f"{path}: one of its storages has {values:,} values, and the file {there:,} bytes: download the "
            "file again"
        )


def _check_records(path: Path) -> None:
    """Check the zip's own checksums, which torch ignores. Torch writes 0 where it computed none.

    Raises:
        LiraError: a record does not have its checksum, is there twice, of which torch takes the last, or is
            compressed, which torch cannot map.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name.lower() for name in archive.namelist()]
        if len({*names}) < len(names):
            raise LiraError(f"{path}: a record is there twice, expected each once: download the file again")
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
