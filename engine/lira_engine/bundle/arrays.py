"""Read arrays of others (.npy, .npz): no more than the file holds, and nothing that numpy writes otherwise.

numpy evaluates the text of a header, and unpacks what is packed, before anybody has looked at the sizes.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lira_engine.errors import LiraError

_MAGIC = b"\x93NUMPY\x01\x00"
# The dictionary as np.save writes it (numpy.lib.format), for numbers and booleans.
_HEADER = re.compile(
    rb"\{'descr': '((?:\|[bui]1)|(?:[<>][iu][248])|(?:[<>]f[248]))', 'fortran_order': (?:True|False), "
    rb"'shape': \(((?:(?:0|[1-9]\d{0,17}), ?){0,7}(?:0|[1-9]\d{0,17})?)\), \} *\n"
)


def map_array(file: Path, mend: str) -> np.ndarray:
    """Return the array of a .npy file, mapped into memory. Raises LiraError, which ends with `mend`, if it
    cannot be read."""
    try:
        with open(file, "rb") as opened:
            _check_header(opened, file.stat().st_size)
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LiraError(f"{file} cannot be read ({_line(error)}); {mend}") from None
    return array


def read_archive(file: Path, mend: str) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file, by name. Raises LiraError, which ends with `mend`, if it cannot be
    read, or is not as np.savez writes it: arrays as they are, not packed."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > file.stat().st_size:
                raise ValueError("its arrays are packed or share bytes, expected them as they are")
            return {entry.filename.removesuffix(".npy"): _member(archive, entry) for entry in entries}
    # RuntimeError of what is encrypted or packed in a way that zipfile does not know, struct.error of fields
    # that end early.
    except (OSError, ValueError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise LiraError(f"{file} cannot be read ({_line(error)}); {mend}") from None


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its array {entry.filename} is packed, expected one as it is")
    content = io.BytesIO(archive.read(entry))
    _check_header(content, len(content.getbuffer()))
    content.seek(0)
    array: np.ndarray = np.load(content, allow_pickle=False)
    return array


def _check_header(file: BinaryIO, size: int) -> None:
    """Raises ValueError if a .npy file of `size` bytes has another header than np.save writes for an array of
    numbers, or another size than it says."""
    head = file.read(len(_MAGIC) + 2)
    length = int.from_bytes(head[len(_MAGIC) :], "little")
    header = _HEADER.fullmatch(file.read(length)) if head.startswith(_MAGIC) else None
    if header is None:
        raise ValueError("it does not begin as np.save writes arrays of numbers")
    shape = [int(number) for number in header[2].split(b",") if number.strip()]
    expected = len(_MAGIC) + 2 + length + math.prod(shape) * int(header[1][-1:])
    if size != expected:
        raise ValueError(f"it has {size} bytes, its header says {expected}")


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "it ends too soon"
