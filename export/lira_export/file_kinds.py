"""Tell from its first bytes what a file is that should hold tensors, and what the user does about it."""

from __future__ import annotations

import io
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from lira_engine.errors import LiraError, quoted

_HEAD = 512
_LONG = 60  # characters of a path, at most, that a command in a message repeats
_AGAIN = "download the file again"
# Offset, signature, kind. Signatures are those of the formats' specifications.
_SIGNATURES = (
    (
        0,
        b"version https://git-lfs",
        "a git-lfs pointer, not the file itself: run `git lfs pull` in its repository",
    ),
    (0, b"\x1f\x8b", f"a gzip archive: unpack it, or {_AGAIN}"),
    (0, b"\xfd7zXZ", f"an xz archive: unpack it, or {_AGAIN}"),
    (0, b"7z\xbc\xaf", f"a 7-Zip archive: unpack it, or {_AGAIN}"),
    (0, b"Rar!", f"a RAR archive: unpack it, or {_AGAIN}"),
    (257, b"ustar", f"a tar archive: unpack it, or {_AGAIN}"),
    (0, b"GGUF", "a GGUF file, which is quantised: take the checkpoint that it was made from"),
    (0, b"\x89HDF", "an HDF5 file: take the PyTorch checkpoint"),
    (0, b"\x93NUMPY", "a NumPy array: take the PyTorch checkpoint"),
    (0, b"%PDF", f"a PDF file: {_AGAIN}"),
)
_OLD_PICKLES = 5  # magic number, version, system, the state dict, and the names of its storages
_PICKLED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_WRAPPERS = ("state_dict", "module", "model", "model_state_dict")


def foreign_kind(path: Path) -> str | None:
    """Return what ``path`` is and what mends it ("a git-lfs pointer, ...: run ..."), or None if it may hold
    tensors.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head:
        return f"empty (0 bytes): {_AGAIN}"
    if not any(head):
        return f"nothing but zeros where it begins: {_AGAIN}"
    for offset, signature, kind in _SIGNATURES:
        if head[offset:].startswith(signature):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return f"a web page, perhaps a server's error or a login: {_AGAIN}, logged in where that is asked for"
    if text.startswith((b"{", b"[")):
        return f"JSON text, perhaps a server's error: {_AGAIN}"
    return None


def is_safetensors(path: Path) -> bool:
    """Return whether the file begins like safetensors: length of the header, then JSON."""
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size


def not_a_pth(path: Path) -> str | None:
    """Return what :func:`foreign_kind` does, for a file that ``torch.save`` should have written.

    Raises:
        OSError: the file cannot be read.
    """
    kind = foreign_kind(path)
    if kind is not None:
        return kind
    if is_safetensors(path):
        return (
            'a safetensors file under another name: convert it, `python -c "import sys, torch, '
            'safetensors.torch as s; torch.save(s.load_file(sys.argv[1]), sys.argv[1])" '
            f"{quoted(path)}`"
        )
    with open(path, "rb") as file:
        head = file.read(2)
    if head != b"PK":
        return None if head in _PICKLED else f"not a file that torch.save wrote: {_AGAIN}"
    if not zipfile.is_zipfile(path):
        return f"cut short, its table of contents is missing: {_AGAIN}"
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        return (
            "a TorchScript archive: take the file with the state dict, or save torch.jit.load's state_dict()"
        )
    if "data.pkl" not in names:
        return f"a zip archive that torch.save did not write: unpack it, or {_AGAIN}"
    return None


def refuse_foreign(path: Path, kind_of: Callable[[Path], str | None] = foreign_kind) -> None:
    """Raise LiraError if ``path`` is what ``kind_of`` names; OSError if it cannot be read."""
    kind = kind_of(path)
    if kind is not None:
        raise LiraError(f"{path} is {kind}")


def tensors_only_command(path: Path, key: str | None = None) -> str:
    """Return a command that replaces a trainer's checkpoint by its tensors, those under ``key`` if given.

    The command unpickles: it is for files that the user trusts.
    """
    texts = set(_strings(path)) if key is None else set()
    key = key or next((wrapper for wrapper in _WRAPPERS if wrapper in texts), None)
    tensors = "t.load(f, weights_only=False)"
    if key:
        tensors += f"[{key!r}]"
    elif any(text.startswith("torch.nn.modules") for text in texts):
        tensors += ".state_dict()"
    else:
        arrays = any("numpy" in text for text in texts)
        keep = (
            "{k: t.as_tensor(v) for k, v in %s.items()}"
            if arrays
            else "{k: v for k, v in %s.items() if t.is_tensor(v)}"
        )
        tensors = keep % tensors
    argument = quoted(path) if len(str(path)) <= _LONG else "FILE"
    return f'python -c "import sys, torch as t; f = sys.argv[1]; t.save({tensors}, f)" {argument}'


def makes_bytes(path: Path) -> bool:
    """Return whether a pickle of a file of torch.save makes a bytearray: of a number, in a few bytes, it
    would fill the memory, and torch's tensors-only reader lets it.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: it is no pickle.
    """
    return any(text == "bytearray" or text.endswith(" bytearray") for text in _arguments(path))


def most_values(path: Path) -> int:
    """Return the number of values of the largest storage in an old-format file of torch.save.

    Raises:
        OSError, ValueError: it is no pickle.
    """
    most = 0
    with _mapped(path) as pickled:
        for _ in range(_OLD_PICKLES):
            numbers: list[list[int]] = [[]]  # those behind each mark that is open
            latest: list[int] = []
            for opcode, argument, _ in pickletools.genops(pickled):
                if opcode.name == "MARK":
                    numbers.append([])
                elif pickletools.markobject in opcode.stack_before and len(numbers) > 1:
                    latest = numbers.pop()
                elif (
                    opcode.name == "BINPERSID"
                ):  # of the tuple ("storage", class, key, device, number of values)
                    most = max([most, *latest])
                elif type(argument) is int and pickletools.pyint in opcode.stack_after:
                    numbers[-1].append(argument)
    return most


def _strings(path: Path) -> Iterator[str]:
    """Yield the texts in a pickle, as far as it can be read, without running it."""
    with suppress(OSError, ValueError, zipfile.BadZipFile):
        yield from _arguments(path)


def _arguments(path: Path) -> Iterator[str]:
    if not zipfile.is_zipfile(path):  # an old-format file: several pickles, and the tensors behind them
        with _mapped(path) as pickled:
            for _ in range(_OLD_PICKLES):
                yield from _texts(pickled)
        return
    with zipfile.ZipFile(path) as archive:
        entry = next((one for one in archive.infolist() if one.filename.endswith("/data.pkl")), None)
        if entry is not None:
            del entry.CRC  # torch may have computed none, and written 0
            with archive.open(entry) as file:
                yield from _texts(io.BytesIO(file.read()))


@contextmanager
def _mapped(path: Path) -> Iterator[IO[bytes]]:
    """A file in memory. Reading a text of a damaged length takes no more than there is, where a file's read
    allocates what is asked for."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield cast(IO[bytes], mapped)  # it has what is read by


def _texts(pickled: IO[bytes]) -> Iterator[str]:
    return (text for _, text, _ in pickletools.genops(pickled) if isinstance(text, str))
