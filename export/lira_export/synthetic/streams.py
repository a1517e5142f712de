"""Write safetensors and files of ``torch.save`` one tensor at a time."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
Pieces = Callable[[str, tuple[int, ...]], Iterator[Tensor]]
"""Name and shape of a tensor -> its values in order, in pieces that fit into memory."""

_SAFETENSORS_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
INDEX = "model.safetensors.index.json"


def write_safetensors(
    folder: Path, shapes: Shapes, dtype: torch.dtype, pieces: Pieces, shard_bytes: int
) -> None:
    """Write shards of at most ``shard_bytes``, or one tensor, and their index, named as transformers does."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = _bytes(shape, dtype)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, {name: shapes[name] for name in names}, dtype, pieces)
        weight_map |= dict.fromkeys(names, file)
    total = sum(_bytes(shape, dtype) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(path: Path, shapes: Shapes, dtype: torch.dtype, pieces: Pieces) -> None:
    """Write eight bytes of header length, the header as JSON, the tensors without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _bytes(shape, dtype)
        stored = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        header[name] = stored
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            _write(file, pieces(name, shape), dtype)


def write_pth(
    path: Path, shapes: Shapes, dtype: torch.dtype, pieces: Pieces, wrapper: str | None = None
) -> None:
    """Write a state dict as ``torch.save`` does, as ``{wrapper: ...}`` if ``wrapper`` is given.

    torch writes the file without the tensors' bytes, which are filled in one after the other. The memory of
    the empty tensors is never touched, so the system never provides it.
    """
    empty = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    with torch.serialization.skip_data():
        torch.save({wrapper: empty} if wrapper else empty, path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename.partition("/data/")[2]: info for info in archive.infolist()}
    with open(path, "r+b") as file:
        # torch numbers storages in the order in which it meets them.
        for i, (name, shape) in enumerate(shapes.items()):
            info = records[str(i)]
            assert info.file_size == _bytes(shape, dtype)
            file.seek(info.header_offset + 26)  # the lengths of name and extra field in the local header
            lengths = file.read(4)
            skipped = sum(int.from_bytes(lengths[k : k + 2], "little") for k in (0, 2))
            file.seek(info.header_offset + 30 + skipped)
            _write(file, pieces(name, shape), dtype)


def _write(file: IO[bytes], pieces: Iterator[Tensor], dtype: torch.dtype) -> None:
    for piece in pieces:
        file.write(piece.to(dtype).contiguous().view(-1).view(torch.uint8).numpy().data)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
