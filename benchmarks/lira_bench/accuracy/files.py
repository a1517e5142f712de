"""Find annotation files by their published names, read them with errors that name the place, hash them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from lira_bench.accuracy.items import Entry, Item, LeftOut
from lira_engine.bundle.integrity import sha256_of
from lira_engine.errors import LiraError
from lira_runtime.images import MAX_SIDE

Line = tuple[str, dict[str, Any] | LeftOut]
"""A line's key with the object on it, or with why there is none."""

_BYTE_ORDER_MARK = "\ufeff"
_MAX_NAME = 1024  # characters of an image's name


class Annotations:
    """The annotation files of one evaluation. `hashes`: SHA-256 by name of each file that was read."""

    def __init__(self, data: Path) -> None:
        if not data.exists():
            raise LiraError(f"{data}: there is no such folder, expected one with annotation files")
        self._given = None if data.is_dir() else data
        self.folder = data if data.is_dir() else data.parent
        self.hashes: dict[str, str] = {}

    def find(self, *patterns: str) -> Path:
        """Return the file that the user named, or the match of the first pattern that has one."""
        found = self._given or self.find_optional(*patterns)
        if found is None:
            raise LiraError(f"{self.folder} holds no annotation file {' or '.join(patterns)}")
        return found

    def find_optional(self, *patterns: str) -> Path | None:
        """Return the match of the first pattern that has one, or None. Raises LiraError for two matches."""
        for pattern in patterns:
            fitting = sorted(path for path in self.folder.glob(pattern) if path.is_file())
            if len(fitting) > 1:
                names = ", ".join(path.name for path in fitting)
                raise LiraError(f"{self.folder} holds {names}: choose one, --data {fitting[0]}")
            if fitting:
                return fitting[0]
        return None

    def json(self, path: Path, kind: type | tuple[type, ...]) -> Any:
        """Return the content of a JSON file whose outermost value is a `kind` (list, dict, or either)."""
        try:
            content = json.loads(self.text(path))
        except (ValueError, RecursionError) as error:
            raise LiraError(f"{path} is not JSON: {error}") from None
        if not isinstance(content, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join("a list" if one is list else "an object" for one in kinds)
            raise LiraError(f"{path} holds {short(content)}, expected {expected}")
        return content

    def lines(self, path: Path) -> Iterator[Line]:
        """Yield the lines of a JSON-lines file without blank ones. Only LF and CRLF end a line: JSON allows
        U+2028 inside a string, at which str.splitlines would split."""
        for number, line in enumerate(self.text(path).split("\n"), 1):
            key = f"{path.name}:{number}"
            if not line.strip(" \t\r"):
                continue
            try:
                # In files joined by `cat` a byte order mark may begin any line.
                entry = json.loads(line.removeprefix(_BYTE_ORDER_MARK))
            except (ValueError, RecursionError) as error:
                yield key, LeftOut(key, f"not JSON: {error}")
                continue
            yield key, entry if isinstance(entry, dict) else LeftOut(key, "not a JSON object")

    def text(self, path: Path) -> str:
        """Return the text of a UTF-8, UTF-16 or UTF-32 file without its byte order mark."""
        try:
            content = path.read_bytes()
            text = content.decode(json.detect_encoding(content))
        except FileNotFoundError:
            raise LiraError(f"{path}: there is no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise LiraError(f"{path} cannot be read: {error}") from None
        self.hashes[path.name] = hashlib.sha256(content).hexdigest()
        return text


class ById:
    """Entries of a list by their id. An id that occurs twice (in joined COCO files) finds none: the entry
    that it means is unknown."""

    def __init__(self, file: str, noun: str, entries: Iterable[Any], key: str = "id") -> None:
        self._file, self._noun = file, noun
        listed = [entry for entry in entries if isinstance(entry, Mapping) and _is_id(entry.get(key))]
        self._entries = {entry[key]: entry for entry in listed}
        self._repeated = repeated(entry[key] for entry in listed)

    def __getitem__(self, wanted: int | str) -> Mapping[str, Any]:
        """Return the entry. Raises LiraError for an id that is missing or occurs twice."""
        if wanted in self._repeated:
            raise LiraError(f"{self._file} has {self._noun} {short(wanted)} twice, expected it once")
        if wanted not in self._entries:
            raise LiraError(f"{self._file} has no {self._noun} {short(wanted)}")
        return self._entries[wanted]


def repeated(ids: Iterable[object]) -> set[object]:
    """Return the ids (integers or texts) that occur more than once."""
    counted = Counter(value for value in ids if _is_id(value))
    return {value for value, count in counted.items() if count > 1}


def unrepeated(noun: str, found: Iterable[tuple[str, Iterable[object], Sequence[Entry]]]) -> Iterator[Entry]:
    """Yield the entries of `found` (key, ids, entries) in their order, without items that share an id.

    Two items with the same id are both left out: which one the id means is unknown.
    """
    listed = [(key, {value for value in ids if _is_id(value)}, entries) for key, ids, entries in found]
    good = [ids for _, ids, entries in listed if any(isinstance(entry, Item) for entry in entries)]
    again = repeated(value for ids in good for value in ids)
    for key, ids, entries in listed:
        shared = next((value for value in ids if value in again), None)
        if shared is None or not any(isinstance(entry, Item) for entry in entries):
            yield from entries
        else:
            yield LeftOut(key, f"{noun} {short(shared)} occurs twice, expected once")


def read_lines(lines: Iterable[Line], entry: Callable[[str, dict[str, Any]], Entry]) -> list[Entry]:
    """What `entry` makes of each line; where two share a `question_id`, both are left out."""
    read = (
        (key, (), [line])
        if isinstance(line, LeftOut)
        else (key, [line.get("question_id")], [entry(key, line)])
        for key, line in lines
    )
    return list(unrepeated("question_id", read))


def _is_id(value: object) -> bool:
    return type(value) in (int, str)  # True and 1.0 are equal to 1, and no ids


def need(entry: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """Return `entry[key]`. Raises LiraError that names the key if it is missing or not of `kind`."""
    if not isinstance(entry, Mapping):
        raise LiraError(f"found {short(entry)}, expected an object")
    if key not in entry:
        raise LiraError(f"key {key!r} is missing")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise LiraError(f"key {key!r} is {short(value)}, expected {expected}")
    return value


def need_text(entry: Any, key: str) -> str:
    """Return the text under `key`. Raises LiraError that names the key if it is missing, empty or no text."""
    text: str = need(entry, key, str)
    if not is_text(text):
        raise LiraError(
            f"key {key!r} is empty" if not text.strip() else f"key {key!r} is {short(text)}, no text"
        )
    return text


def need_size(entry: Any) -> tuple[int, int]:
    """Return an image's (height, width) in pixels. Raises LiraError if they are missing or out of range."""
    height, width = need(entry, "height", int), need(entry, "width", int)
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise LiraError(
            f"its height is {short(height)} and its width {short(width)}, "
            f"expected pixels from 1 to {MAX_SIDE:,}"
        )
    return height, width


def is_text(value: object) -> bool:
    """Return whether it is a text that is not blank and has no lone surrogates, which JSON can hold."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(value: object) -> str:
    """Return a value for an error message: on one line, with at most 40 characters."""
    if type(value) is int and abs(value) >= 10**20:
        return f"a number of {len(str(abs(value)))} digits"
    try:
        text = repr(value)
    except RecursionError:  # JSON may be nested deeper than Python prints
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 40 else text[:37] + "..."


def images_folder(data: Path, given: Path | None) -> Path:
    """Return `given`, or the folder `images` beside the annotations, or the annotations' folder."""
    if given is not None:
        if not given.is_dir():
            raise LiraError(f"--images {given}: there is no such folder")
        return given
    folder = data if data.is_dir() else data.parent
    return folder / "images" if (folder / "images").is_dir() else folder


def image_path(folder: Path, name: str) -> Path:
    """Return the path of the image `name`. Raises LiraError for a name that leads out of `folder`."""
    pure = PurePath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or len(name) > _MAX_NAME:
        raise LiraError(f"the image is named {short(name)}, expected a path below the images folder")
    return folder / pure


def identity(path: Path) -> str | None:
    """Return the SHA-256 of an image file; None if it cannot be read."""
    try:
        return sha256_of(path)
    except (OSError, ValueError):
        return None
