"""A file of JSON lines that survives being killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lira_engine.errors import LiraError
from lira_engine.system.atomic import readable_errors


class Journal:
    """Records in the order in which they were appended, each on the disk at once. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises LiraError if it cannot be written or a line is damaged."""
        self._path = path
        with readable_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
        try:
            self._records = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record to the disk, so that it survives a crash."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with readable_errors(self._path):
            self._file.write(line.encode("utf-8", "backslashreplace"))
            self._file.flush()
        self._records.append(json.loads(line))

    def records(self) -> list[dict[str, Any]]:
        """Return all records, those of earlier runs first."""
        return list(self._records)

    def _read(self) -> list[dict[str, Any]]:
        """Return the records of earlier runs. Cuts off an incomplete last line."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        found = []
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise LiraError(f"{self._path}:{number} is damaged: start anew with --overwrite")
            found.append(record)
        return found
