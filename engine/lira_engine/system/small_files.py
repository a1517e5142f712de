"""Read small files of others whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_BYTES = 8 << 20
"""A description of a bundle or of a build has some ten thousand bytes. Parsed, JSON takes about fifty times
its bytes."""


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return a file's content. Raises OSError if it cannot be read, is no regular file, which a pipe or a
    device would make endless, or has more than `most` bytes."""
    # A pipe that is opened waits for its writer, a device may do something: both are told before.
    if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
        raise OSError("it is a pipe or a device, expected a regular file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"it has more than {most:,} bytes")
    return content
