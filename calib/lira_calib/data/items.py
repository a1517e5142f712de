"""Pictures with questions and answers to calibrate on, chosen from annotations in the forms of `eval`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy.files import image_path
from lira_calib.data.annotations import Item, items_of
from lira_calib.data.mixture import GROUPS, choose
from lira_engine.bundle.integrity import sha256_of
from lira_engine.errors import LiraError, OutOfMemory
from lira_runtime.images import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from lira_engine.bundle.bundle import Bundle

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NEEDED = (
    "calibration needs pictures of what the model will see: --images DIR, and, to measure against the truth, "
    "annotations in a form that `lira-edge eval` reads: --questions FILE"
)
MINIATURE = "lira-nano"
_HEAD = 4096  # bytes of a file, which may have gigabytes
_NAMED = 5  # broken pictures in a message
_SEVERAL = 4  # from so many pictures on, a single class or look is worth a warning
_THUMBNAIL = 8  # pixels a side
_SAME = 4.0  # levels of 255: pictures that differ by less on average are nearly the same


Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Data:
    """What to calibrate on, and what to judge by: no picture is in both.

    Attributes:
        images: the folder of the pictures. annotated: whether the answers come from annotations; if not,
            pictures are turned upright as `run` does.
        left_out: entries and pictures that cannot be used, with the reason.
        identity: hashes of the annotation files and of the pictures, and the mixture that was found.
        warnings: lines for the user. drawn: whether these are the miniature's scenes.
    """

    images: Path
    annotated: bool
    calibration: list[Item]
    held_out: list[Item]
    left_out: list[tuple[str, str]]
    identity: dict[str, Any]
    warnings: list[str]
    drawn: bool = False

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises LiraError for the miniature's scenes and a model with weights of its own: they are not what
        it will see."""
        manifest = bundle.manifest
        if self.drawn and manifest.name != MINIATURE and not manifest.provenance.get("synthetic"):
            raise LiraError(
                f"the pictures are scenes that were drawn for {MINIATURE}, not for {manifest.name}; {NEEDED}"
            )


def read_items(images: Path, questions: Sequence[Path], count: int, held_out: int, seed: int = 0) -> Data:
    """Choose `count` items to calibrate on and `held_out` others, about different pictures.

    images: folder of pictures. questions: annotation files, or folders with them; without any, each picture
    gets the bundle's own questions, and the answers are the model's. The groups are mixed as in the paper's
    table 1 as far as the data allows. The choice depends on the files and the seed alone. One picture is in
    memory at a time.
    Raises LiraError without pictures, for annotations of no known form, and if fewer items are usable, with
    how many there are.
    """
    if not images.is_dir():
        raise LiraError(f"--images {images}: there is no such folder; {NEEDED}")
    offered, left_out, hashes = _annotated(questions) if questions else (_own(images), [], {})
    if not offered:
        raise LiraError(
            f"{images if not questions else ', '.join(map(str, questions))}: nothing to ask about; {NEEDED}"
        )
    looks = _Looks(images, annotated=bool(questions))
    chosen = choose(offered, (count, held_out), seed, looks.usable)
    left_out += looks.broken
    if chosen.short:
        raise LiraError(_too_few(chosen.found, count, held_out, left_out))
    calibration, judged = chosen.sets
    return Data(
        images=images,
        annotated=bool(questions),
        calibration=calibration,
        held_out=judged,
        left_out=left_out,
        identity={
            "seed": seed,
            "questions": hashes,
            "mixture": {"calibration": _counts(calibration), "held_out": _counts(judged)},
            "pictures": looks.hashes_of([*calibration, *judged]),
        },
        warnings=[*looks.warnings([*calibration, *judged]), *_told(left_out)],
        drawn=any(map(_is_drawn, questions)),
    )


def _annotated(
    questions: Sequence[Path],
) -> tuple[dict[str, list[Item]], list[tuple[str, str]], dict[str, str]]:
    """Return the items of annotation files by picture, entries that are left out, and the files' hashes."""
    by_image: dict[str, list[Item]] = {}
    left_out: list[tuple[str, str]] = []
    hashes: dict[str, str] = {}
    seen = set()
    for path in questions:
        found = items_of(path)
        hashes |= found.files
        left_out += found.left_out
        for item in found.items:
            same = (item.image, item.task, item.text, item.answer)
            if same not in seen:  # POPE's questions may be those of another file
                seen.add(same)
                by_image.setdefault(item.image, []).append(item)
    return by_image, left_out, hashes


def _own(images: Path) -> dict[str, list[Item]]:
    """Return for each picture the bundle's own questions."""
    names = sorted(
        path.relative_to(images).as_posix()
        for path in images.rglob("*")
        if path.suffix.lower() in ENDINGS and path.is_file()
    )
    tasks = (("caption", "comprehension"), ("refseg", "referring"), ("gcg", "conversation"))
    return {
        name: [Item(f"{name}:{task}", name, task, None, None, (), group) for task, group in tasks]
        for name in names
    }


def _is_drawn(questions: Path) -> bool:
    """Return whether annotations say that the miniature's scenes were drawn for them."""
    folder = questions if questions.is_dir() else questions.parent
    try:
        with (folder / "instances.json").open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return f'"description": "{MINIATURE} scenes"'.encode() in head


class _Looks:
    """Opens pictures, one at a time, and keeps of each what tells whether it is usable and new."""

    def __init__(self, folder: Path, annotated: bool) -> None:
        self._folder, self._annotated = folder, annotated
        self._latest: tuple[str, Image | None] = ("", None)
        self._small: dict[str, np.ndarray] = {}
        self._hashes: dict[str, str] = {}
        self._unreadable: set[str] = set()
        self.broken: list[tuple[str, str]] = []

    def usable(self, item: Item) -> bool:
        """Return whether the picture opens and the masks fit it; note why not."""
        if self._latest[0] != item.image:
            self._latest = (item.image, self._opened(item.image))
        picture = self._latest[1]
        if picture is None:
            return False
        try:
            item.true_masks(picture, self._folder / item.image)
        except OutOfMemory:
            raise
        except LiraError as error:
            self.broken.append((item.key, str(error)))
            return False
        return True

    def _opened(self, name: str) -> Image | None:
        if name in self._unreadable:
            return None
        try:
            path = image_path(self._folder, name)
            picture = open_image(path, upright=not self._annotated)
        except OutOfMemory:
            raise
        except LiraError as error:
            self._unreadable.add(name)
            self.broken.append((name, str(error).replace(f"{self._folder}{os.sep}", "")))
            return None
        if name not in self._hashes:
            self._hashes[name] = sha256_of(path)
            self._small[name] = _thumbnail(picture)
        return picture

    def hashes_of(self, items: Sequence[Item]) -> dict[str, str]:
        """Return the SHA-256 of the items' pictures, by name."""
        return {name: self._hashes[name] for name in sorted({item.image for item in items})}

    def warnings(self, items: Sequence[Item]) -> list[str]:
        """Return a line each for pictures of one class, and for pictures that look alike."""
        told = []
        names = {item.image for item in items}
        classes = {one for item in items for one in item.truth.get("classes", ())}
        if len(names) >= _SEVERAL and len(classes) == 1:
            told.append(
                f"all pictures are about one class ({next(iter(classes))}): ranges and choices will fit that "
                "class alone; add pictures of what else the model will see"
            )
        small = np.stack([self._small[name] for name in sorted(names)])
        apart = np.abs(small - small.mean(axis=0)).mean()
        if len(names) >= _SEVERAL and apart < _SAME:
            told.append("the pictures are nearly the same: add others of what the model will see")
        return told


def _thumbnail(picture: Image) -> np.ndarray:
    from PIL import Image as pillow

    small = picture.resize((_THUMBNAIL, _THUMBNAIL), pillow.Resampling.BOX)
    return np.asarray(small, np.float32)


def _counts(items: Sequence[Item]) -> dict[str, int]:
    counted = Counter(item.group for item in items)
    return {group: counted[group] for group in GROUPS}


def _told(left_out: Sequence[tuple[str, str]]) -> list[str]:
    return [f"left out {_named(left_out)}"] if left_out else []


def _named(left_out: Sequence[tuple[str, str]]) -> str:
    shown = "; ".join(f"{key}: {reason}" for key, reason in left_out[:_NAMED])
    return f"{len(left_out)} ({shown}{'; ...' if len(left_out) > _NAMED else ''})"


def _too_few(found: int, count: int, held_out: int, left_out: Sequence[tuple[str, str]]) -> str:
    lost = f", {_named(left_out)} cannot be used" if left_out else ""
    return (
        f"asked for {count} items to calibrate on and {held_out} held out, about other pictures; there are "
        f"{found}{lost}: give more pictures or annotations, or ask for fewer"
    )
