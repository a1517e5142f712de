"""The hidden folder beside a recipe, in which a calibration works and from which a killed one goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lira_bench.accuracy.output import START_ANEW, difference, lock_file
from lira_calib.data.journal import Journal
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write, readable_errors

IDENTITY, LOCK, JOURNAL = "identity.json", "lock", "journal.jsonl"
FORMAT = "lira-calibration"
FORMAT_VERSION = 1


def work_path(recipe: Path) -> Path:
    """Return the folder in which a calibration that writes `recipe` works."""
    recipe = recipe.absolute()
    return recipe.parent / f".{recipe.name}.calibration"


class WorkFolder:
    """The folder, open for one calibration. A context manager.

    Attributes:
        path: the folder. resumed: whether an earlier run of the same calibration left it. journal: records
            of this run and of earlier ones.
    """

    def __init__(self, recipe: Path, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        """Open or make the folder of the calibration that writes `recipe`.

        identity: what the result depends on (bundle, data, options, version), for JSON. overwrite: drop the
        work of another calibration. Raises LiraError for the work of another one, if another process works
        there, and if the folder cannot be written.
        """
        self.path = work_path(recipe)
        wanted = {"format": FORMAT, "format_version": FORMAT_VERSION, **json.loads(json.dumps(identity))}
        with readable_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock: IO[bytes] = (self.path / LOCK).open("a+b")
        try:
            if not lock_file(self._lock):
                raise LiraError(
                    f"{recipe} is being made by another calibration: wait for it, or choose another -o"
                )
            self.resumed = self._take_over(recipe, wanted, overwrite)
            self.journal = Journal(self.path / JOURNAL)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder; what it holds stays."""
        self.journal.close()
        self._lock.close()

    def remove(self) -> None:
        """Close and remove the folder: the recipe is written."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _take_over(self, recipe: Path, wanted: Mapping[str, Any], overwrite: bool) -> bool:
        """Make the folder that of `wanted`; return whether it was before."""
        file = self.path / IDENTITY
        earlier = _read(file)
        if earlier == wanted:
            return True
        if earlier is not None and not overwrite:
            key = next(k for k in {**wanted, **earlier} if wanted.get(k) != earlier.get(k))
            said = difference(key, earlier.get(key), wanted.get(key))
            raise LiraError(f"{self.path} holds a stopped calibration with {said}: {START_ANEW}")
        for path in self.path.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with atomic_write(file) as stream:
            stream.write((json.dumps(wanted, indent=1) + "\n").encode())
        return False


def _read(file: Path) -> dict[str, Any] | None:
    """Return the identity of an earlier run; None if there was none, an empty object for a damaged one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
