"""What a harness is: a function that gives bytes to one of our readers, and inputs to begin with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CORPUS = Path(__file__).parent / "corpus"

Form = Literal["json", "lines", "tensors", "bytes"]
"""How inputs are built, by which they are changed: JSON, a JSON value a line, safetensors (a length, JSON,
data) or anything."""


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        read: gives bytes to the reader. It returns, or raises LiraError; anything else is a finding.
        seeds: returns good inputs, made by code. form: how they are built.
    """

    name: str
    read: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    form: Form = "bytes"

    def corpus(self) -> list[bytes]:
        """Return the seeds, and the inputs that were findings once."""
        return [*self.seeds(), *(path.read_bytes() for path in sorted((CORPUS / self.name).glob("*")))]


@contextmanager
def folder_with(**files: bytes) -> Iterator[Path]:
    """A folder for one input: `name_ending` becomes the file `name.ending`."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / ".".join(file.rsplit("_", 1))).write_bytes(content)
        yield folder
