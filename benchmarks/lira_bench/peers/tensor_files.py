"""Write sharded safetensors files one tensor at a time, and read them memory-mapped.

The format: eight bytes with the length of a JSON header, the header ({name: dtype, shape, data_offsets}),
then the tensors' bytes, little endian, without gaps (https://github.com/huggingface/safetensors). The
package's own writer needs all tensors of a file in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# BF16 as bits: numpy has no such type.
NUMPY: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Tensor:
    """A tensor whose array ``read`` loads; its item size is that of ``dtype``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NUMPY[self.dtype].itemsize


def write_shards(folder: Path, tensors: Iterable[Tensor], shard_bytes: int) -> None:
    """Write model-00001-of-0000N.safetensors and model.safetensors.index.json, tensors in the order given.

    A shard holds at most ``shard_bytes``, or a single larger tensor.
    """
    shards: list[list[Tensor]] = []
    filled = shard_bytes
    for tensor in tensors:
        if filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / name, shard)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder that `write_shards` wrote; reading one maps its file."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start = 8 + length + entry["data_offsets"][0]
                tensors[name] = _mapped(path, name, entry["dtype"], tuple(entry["shape"]), start)
    return tensors


def _mapped(path: Path, name: str, dtype: str, shape: tuple[int, ...], start: int) -> Tensor:
    return Tensor(name, dtype, shape, lambda: np.memmap(path, NUMPY[dtype], "r", start, shape))


def _write_file(path: Path, tensors: list[Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = tensor.read()
            if array.shape != tensor.shape or array.dtype.itemsize != NUMPY[tensor.dtype].itemsize:
                found = f"{array.dtype} {array.shape}"
                raise ValueError(f"{tensor.name}: found {found}, expected {tensor.dtype} {tensor.shape}")
            np.ascontiguousarray(array).tofile(file)
