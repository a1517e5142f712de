"""The folder that an evaluation writes, and from which an interrupted evaluation goes on.

`report.json` exists from the start, with the description of the run and `"complete": false`; `samples.jsonl`
grows by a line per item. Neither holds times or paths, so the same evaluation with the same number of threads
gives the same bytes. (With another number, engines sum in another order: a last digit may differ.)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lira_bench.accuracy.items import Record
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write, readable_errors

try:
    import fcntl
except ImportError:  # Windows: two evaluations may write one folder there
    fcntl = None  # type: ignore[assignment]

REPORT, SAMPLES = "report.json", "samples.jsonl"
FORMAT = "lira-eval"
FORMAT_VERSION = 2
START_ANEW = "choose another -o, or start anew with --overwrite"


class Output:
    """The folder, open for one evaluation. A context manager; `records`: those of earlier runs, by key.

    Left out items have no record there: they are tried again, as their image may exist now.
    """

    def __init__(self, folder: Path, run: dict[str, Any], overwrite: bool = False) -> None:
        """Open the folder. Raises LiraError if it holds other files, or another evaluation."""
        self.folder = folder
        self._run = run
        self._report, self._samples = folder / REPORT, folder / SAMPLES
        earlier = self._refuse_foreign(overwrite)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._report.is_file():
                self._write_report({"complete": False, "run": run})
            self._file: IO[bytes] = self._samples.open("a+b")
        except OSError as error:
            raise LiraError(f"{folder} cannot be written: {error.strerror}") from None
        try:
            if not lock_file(self._file):
                raise LiraError(f"{folder} is being written by another evaluation: choose another -o")
            if overwrite:
                self._write_report({"complete": False, "run": earlier or run})  # before its samples go
                self._file.truncate(0)
                self._write_report({"complete": False, "run": run})
            self.records = self._read_samples()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        with readable_errors(self._samples):  # what a full disk did not take is tried once more
            self._file.close()

    def append(self, record: Record) -> None:
        """Write a record to the disk at once, so that it survives a crash."""
        with readable_errors(self._samples):
            self._file.write(_json(record))
            self._file.flush()
        if "left_out" not in record:
            self.records[record["item"]] = record

    def forget(self, images: Collection[str]) -> None:
        """Drop the records of these images, whose files were replaced."""
        self._write_report({"complete": False, "run": self._run})  # before its samples go
        kept = [record for record in self.records.values() if record["image"] not in images]
        with readable_errors(self._samples):
            self._file.truncate(0)
            self._file.writelines(map(_json, kept))
            self._file.flush()
        self.records = {record["item"]: record for record in kept}

    def finish(self, records: Iterable[Record], report: dict[str, Any]) -> None:
        """Write the samples in their final order, then the complete report."""
        with atomic_write(self._samples) as file:
            file.writelines(map(_json, records))
        self._write_report({"complete": True, "run": self._run, **report})

    def _write_report(self, content: dict[str, Any]) -> None:
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **content}
        with atomic_write(self._report) as file:
            file.write(_json(content, indent=1))

    def _refuse_foreign(self, overwrite: bool) -> dict[str, Any] | None:
        """Return the description of an earlier evaluation in the folder, if there is one."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise LiraError(f"{folder} is a file, expected the path of a folder to write")
        if not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir()):
            return None
        if not self._report.is_file():
            raise LiraError(f"{folder} holds other things than an evaluation: choose another -o")
        report = _read_json(self._report)
        earlier: dict[str, Any] = report["run"]
        if overwrite:
            return earlier
        _check_version(self._report, report)
        for key in {**self._run, **earlier}:
            was, now = earlier.get(key), self._run.get(key)
            if was != now:
                raise LiraError(
                    f"{folder} holds an evaluation with {difference(key, was, now)}: {START_ANEW}"
                )
        return earlier

    def _read_samples(self) -> dict[str, Record]:
        """Return the records of earlier runs, the latest of each item. Cuts off an incomplete last line."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        records: dict[str, Record] = {}
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                if "left_out" not in record and record["image"]:
                    records[record["item"]] = record
            except (ValueError, RecursionError, KeyError, TypeError):
                raise LiraError(f"{self._samples}:{number} is damaged: start anew with --overwrite") from None
        return records


def _read_json(path: Path) -> dict[str, Any]:
    """Return a report of any version. Raises LiraError if the file is none."""
    report: Any = None
    with suppress(OSError, ValueError, RecursionError):
        report = json.loads(path.read_text(encoding="utf-8"))
    if (
        not isinstance(report, dict)
        or report.get("format") != FORMAT
        or not isinstance(report.get("run"), dict)
    ):
        raise LiraError(f"{path} is not the report of an evaluation: choose another -o")
    return report


def _check_version(path: Path, report: dict[str, Any]) -> None:
    version = report.get("format_version")
    if version != FORMAT_VERSION:
        raise LiraError(f"{path} has format version {version}, expected {FORMAT_VERSION}: {START_ANEW}")


def _json(content: Any, indent: int | None = None) -> bytes:
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a name that is not UTF-8 becomes \udc80


def difference(key: str, was: Any, now: Any) -> str:
    """Return what differs, in a few words."""
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next(name for name in {**was, **now} if was.get(name) != now.get(name))
        return difference(f"{key}.{inner}", was.get(inner), now.get(inner))
    short = [str(value)[:12] if len(str(value)) == 64 else str(value) for value in (was, now)]
    return f"{key} {short[0]}, this one has {short[1]}"


def lock_file(file: IO[bytes]) -> bool:
    """Lock the file; return whether this process may write it. File systems without locks allow it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
