"""Annotation files: found by their usual names, read with errors that name the place, hashed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from lira_bench.accuracy.items import LeftOut
from lira_engine.errors import LiraError
from lira_engine.verify import sha256_of


class Annotations:
    """The annotation files of one evaluation. `hashes` remembers what was read."""

    def __init__(self, data: Path) -> None:
        if not data.exists():
            raise LiraError(f"{data}: there is no such folder, expected one with annotation files")
        self._given = None if data.is_dir() else data
        self.folder = data if data.is_dir() else data.parent
        self.hashes: dict[str, str] = {}

    def find(self, *patterns: str) -> Path:
        """The file that the user named, or the one that fits the first pattern which any file fits."""
        found = self._given or self.find_optional(*patterns)
        if found is None:
            raise LiraError(f"{self.folder} holds no annotation file {' or '.join(patterns)}")
        return found

    def find_optional(self, *patterns: str) -> Path | None:
        """As `find` in the folder alone; None where there is none. Raises LiraError where several fit."""
        for pattern in patterns:
            fitting = sorted(path for path in self.folder.glob(pattern) if path.is_file())
            if len(fitting) > 1:
                names = ", ".join(path.name for path in fitting)
                raise LiraError(f"{self.folder} holds {names}: choose one, --data {fitting[0]}")
            if fitting:
                return fitting[0]
        return None

    def json(self, path: Path, kind: type) -> Any:
        """A whole JSON file, whose outermost value is a `kind` (list or dict)."""
        try:
            content = json.loads(self._text(path))
        except (ValueError, RecursionError) as error:
            raise LiraError(f"{path} is not JSON: {str(error).splitlines()[0]}") from None
        if not isinstance(content, kind):
            expected = "a list" if kind is list else "an object"
            raise LiraError(f"{path} holds {_short(content)}, expected {expected}")
        return content

    def lines(self, path: Path) -> Iterator[tuple[str, dict[str, Any] | LeftOut]]:
        """(key, object) per line of a JSON-lines file, blank lines skipped."""
        for number, line in enumerate(self._text(path).splitlines(), 1):
            key = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield key, LeftOut(key, f"not JSON: {error}")
                continue
            yield key, entry if isinstance(entry, dict) else LeftOut(key, "not a JSON object")

    def _text(self, path: Path) -> str:
        try:
            text = path.read_text(encoding="utf-8")
            self.hashes[path.name] = sha256_of(path)
        except FileNotFoundError:
            raise LiraError(f"{path}: there is no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise LiraError(f"{path} cannot be read: {error}") from None
        return text


def need(entry: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """`entry[key]`, which has to be of `kind`. Raises LiraError that names the key."""
    if not isinstance(entry, Mapping):
        raise LiraError(f"found {_short(entry)}, expected an object")
    if key not in entry:
        raise LiraError(f"key {key!r} is missing")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise LiraError(f"key {key!r} is {_short(value)}, expected {expected}")
    return value


def need_text(entry: Mapping[str, Any], key: str) -> str:
    """The text under `key`, not empty. Raises LiraError that names the key."""
    text: str = need(entry, key, str)
    if not is_text(text):
        raise LiraError(
            f"key {key!r} is empty" if not text.strip() else f"key {key!r} is {_short(text)}, no text"
        )
    return text


def is_text(value: object) -> bool:
    """Whether it is a text with something in it. JSON can hold halves of characters, which no file can."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def images_folder(data: Path, given: Path | None) -> Path:
    """`--images`, or the folder `images` beside the annotations, or the annotations' own."""
    if given is not None:
        if not given.is_dir():
            raise LiraError(f"--images {given}: there is no such folder")
        return given
    folder = data if data.is_dir() else data.parent
    return folder / "images" if (folder / "images").is_dir() else folder


def image_path(folder: Path, name: str) -> Path:
    """The image `name` below `folder`. Raises LiraError for a name that leads out of it."""
    pure = PurePath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name:
        raise LiraError(f"the image is named {name!r}, expected a path below the images folder")
    return folder / pure


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
