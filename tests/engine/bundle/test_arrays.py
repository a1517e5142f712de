"""Arrays are read as numpy writes them; everything else is refused before it asks for memory."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lira_engine.bundle.arrays import map_array, read_archive
from lira_engine.errors import LiraError

KINDS = ("?", "u1", "i1", "<i2", "<i4", "<i8", "<u4", "<f2", "<f4", "<f8", ">f4")


def npy(array: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 2, 1, 3)])
def test_arrays_of_numbers_are_read_as_written(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    (tmp_path / "a.npy").write_bytes(npy(array))
    np.savez(tmp_path / "a.npz", **{"in.a": array, "b": array.copy(order="F")})
    read = read_archive(tmp_path / "a.npz", "mend it")
    for found in (map_array(tmp_path / "a.npy", "mend it"), read["in.a"], read["b"]):
        assert found.dtype == array.dtype and found.shape == shape
        np.testing.assert_array_equal(found, array)


def header(text: str, content: bytes = bytes(8)) -> bytes:
    line = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy(np.zeros(2))[:-1],
        npy(np.zeros(2)) + b"x",
        npy(np.array(["text"])),
        npy(np.array([1j])),
        npy(np.zeros(2, [("a", "f4")])),
        b"\x93NUMPY\x03\x00" + npy(np.zeros(2))[8:],
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
        header("{'descr': '<f9', 'fortran_order': False, 'shape': (1,), }"),
        header("{'descr': '<f8', 'fortran_order': 0, 'shape': (1,), }"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
        header("((" * 9000),
    ],
)
def test_other_headers_and_sizes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(LiraError, match=r"a\.npy cannot be read \(.+\); mend it$"):
        map_array(tmp_path / "a.npy", "mend it")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(LiraError, match=r"a\.npz cannot be read \(.+\); mend it$"):
        read_archive(tmp_path / "a.npz", "mend it")


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packed_archive_is_not_unpacked(tmp_path: Path, packing: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive:
        archive.writestr("a.npy", npy(np.zeros(1 << 20)))
    with pytest.raises(LiraError, match="its arrays are packed or share bytes"):
        read_archive(tmp_path / "a.npz", "mend it")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive:  # noise is not smaller when packed
        archive.writestr("a.npy", npy(np.frombuffer(random.Random(17).randbytes(100), np.uint8)))
        archive.writestr("b.npy", npy(np.zeros(2)), zipfile.ZIP_STORED)
        archive.writestr("c", random.Random(17).randbytes(100), zipfile.ZIP_STORED)
    with pytest.raises(LiraError, match=r"its array a\.npy is packed"):
        read_archive(tmp_path / "a.npz", "mend it")


def test_arrays_that_share_bytes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy(np.zeros(1000)))
        archive.infolist()[0].filename = "a.npy"
        for number in range(5):
            entry = zipfile.ZipInfo(f"{number}.npy")
            first = archive.filelist[0]
            entry.header_offset, entry.CRC = first.header_offset, first.CRC
            entry.file_size = entry.compress_size = first.file_size
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(LiraError, match="packed or share bytes"):
        read_archive(file, "mend it")


def test_changed_bytes_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    rng, file = random.Random(17), tmp_path / "a.npz"
    np.savez(file, a=np.arange(6.0).reshape(2, 3), b=np.array(True))
    whole, refused = file.read_bytes(), 0
    for _ in range(1500):
        changed = bytearray(whole[: rng.choice((len(whole), len(whole), rng.randrange(len(whole))))])
        for _ in range(rng.choice((1, 3, 20))):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        file.write_bytes(changed)
        try:
            read_archive(file, "mend it")
        except LiraError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 1000
