"""A font for each sign of a text: Pillow's own font, a font of this system, or none.

Pillow's own font needs no file, but has the signs of English only. Fonts with all other signs take megabytes
and are on most systems, so none is shipped.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont, features

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_SIMILAR = str.maketrans("‘’“”–—−×…\u00a0", "''\"\"---x. ")
_SHOWN_INSTEAD = "?"
_PROBE_SIZE = 16
_NO_SIGN = "\U0010ffff"  # not a character: a font draws what it draws for signs that it lacks
# Fonts with a box for every character.
_PLACEHOLDERS = ("lastresort", "adobeblank", "bmpfallback")
_JOINERS = "\u200c\u200d"
# Scripts that need text shaping: letters change with their neighbours, or are drawn in another order.
_SHAPED = (
    *("ARABIC", "HEBREW", "SYRIAC", "THAANA", "NKO", "DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI"),
    *("ORIYA", "TAMIL", "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "THAI", "LAO", "TIBETAN"),
    *("MYANMAR", "KHMER", "MONGOLIAN"),
)
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH")


@dataclass(frozen=True)
class Run:
    """Neighbouring signs from one font: the file, or None for Pillow's own."""

    text: str
    file: str | None


@lru_cache(maxsize=64)
def font(size: float, file: str | None = None) -> Font:
    """Return a font of `size` pixels."""
    if file is None:
        return ImageFont.load_default(size=size)
    return ImageFont.truetype(file, size)


@lru_cache(maxsize=4096)
def runs(text: str) -> tuple[Run, ...]:
    """Return what to draw for one line of text: "?" in place of signs that no font of this system has.

    Accented letters and typographic signs become the ASCII of Pillow's own font, control characters become
    blanks, and signs without a shape of their own are left out.
    """
    found: list[Run] = []
    for character in unicodedata.normalize("NFC", text):
        run = _run(character, found[-1] if found else None)
        if found and run.file == found[-1].file:
            found[-1] = Run(found[-1].text + run.text, run.file)
        elif run.text:
            found.append(run)
    return tuple(found)


def missing(text: str) -> str | None:
    """Return a line that names the signs of `text` drawn as "?", and what to install; None without any."""
    lost = dict.fromkeys(c for c in unicodedata.normalize("NFC", text) if _lacks(c))
    if not lost:
        return None
    shown = "".join(lost) if len(lost) <= 12 else "".join(list(lost)[:12]) + ".."
    unshaped = [c for c in lost if _is_shaped(c)]
    if unshaped and not _can_shape():
        scripts = ", ".join(dict.fromkeys(_script(c).capitalize() for c in unshaped))
        return (
            f'the picture shows "?" for {shown}: Pillow here cannot lay out {scripts}; install what it needs '
            "for that (apt-get install libfribidi0), and a Pillow with raqm (pip install --upgrade pillow)"
        )
    packages = " ".join(dict.fromkeys(map(_package, lost)))
    mend = f"apt-get install {packages}" if sys.platform == "linux" else "Google's Noto fonts have most"
    return f'the picture shows "?" for {shown}: no font of this system has these signs; install one ({mend})'


def _package(character: str) -> str:
    """Return Debian's package of a font that has a sign."""
    if _script(character) in _EAST_ASIAN:
        return "fonts-noto-cjk"
    return "fonts-symbola" if unicodedata.category(character)[0] == "S" else "fonts-noto-core"


def _run(character: str, before: Run | None) -> Run:
    beside = before.file if before else None
    category = unicodedata.category(character)
    if character.isspace() or category == "Cc":
        return Run(" ", beside)
    if category in ("Cf", "Mn", "Mc", "Me"):
        keeps = beside is not None and (category != "Cf" or character in _JOINERS) and _can_shape()
        return Run(character if keeps and _has(beside, character) else "", beside)
    if beside is not None and not character.isalpha() and _has(beside, character):
        return Run(character, beside)  # digits and full stops are laid out with their words
    plain = _plain(character)
    if plain:
        return Run(plain, None)
    file = _file_with(character)
    return Run(_SHOWN_INSTEAD, None) if file is None else Run(character, file)


def _lacks(character: str) -> bool:
    if character.isspace() or unicodedata.category(character) in ("Cc", "Cf", "Mn", "Mc", "Me"):
        return False
    return not _plain(character) and _file_with(character) is None


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """Return a sign as signs of Pillow's own font; "" where that has none."""
    reduced = unicodedata.normalize("NFKD", character.translate(_SIMILAR))
    reduced = "".join(c for c in reduced if not unicodedata.combining(c))
    if reduced.isascii() and reduced.isprintable():
        return reduced
    return character if _has(None, character) else ""


@lru_cache(maxsize=4096)
def _file_with(character: str) -> str | None:
    """Return the first font file of this system that can draw `character`, or None."""
    if unicodedata.category(character) in ("Cs", "Cn") or (_is_shaped(character) and not _can_shape()):
        return None
    return next((file for file in _files() if _has(file, character)), None)


def _is_shaped(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL") or _script(character) in _SHAPED


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


@cache
def _can_shape() -> bool:
    return bool(features.check("raqm") and features.check("fribidi"))


def _has(file: str | None, character: str) -> bool:
    try:
        probe, without = _probe(file)
        return probe is not None and bytes(probe.getmask(character)) != without
    except (OSError, ValueError):
        return False


@cache
def _probe(file: str | None) -> tuple[Font | None, bytes]:
    """Return a font and its picture of a missing sign; None for a file that is no outline font."""
    try:
        if file is None:
            probe: Font = font(_PROBE_SIZE)
        else:
            probe = ImageFont.truetype(file, _PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC)
        return probe, bytes(probe.getmask(_NO_SIGN))
    except (OSError, ValueError):
        return None, b""


@cache
def _files() -> tuple[str, ...]:
    """Return the font files of this system, upright sans-serif ones of regular weight first."""
    found = (Path(folder, name) for top in _folders() for folder, _, names in os.walk(top) for name in names)
    fonts = [path for path in found if path.suffix.lower() in (".ttf", ".otf", ".ttc")]
    return tuple(str(path) for path in sorted(fonts, key=_preference) if not _is_placeholder(path))


def _folders() -> Iterator[Path]:
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")
        yield Path(os.environ.get("LOCALAPPDATA", ""), "Microsoft", "Windows", "Fonts")
        return
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
        return
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    yield from (data / "fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts"))


def _preference(path: Path) -> tuple[bool, bool, bool, str]:
    name = path.stem.lower()
    special = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed", "medium", "emoji")
    return any(word in name for word in special), "serif" in name, "sans" not in name, str(path)


def _is_placeholder(path: Path) -> bool:
    name = path.stem.lower().replace(" ", "").replace("-", "").replace("_", "")
    return any(word in name for word in _PLACEHOLDERS)
