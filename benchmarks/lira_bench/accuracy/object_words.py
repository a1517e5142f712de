"""Find the objects that an English text mentions, by the words of a data set's categories.

Source: Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, section 3, and its code's
rules for words of two parts ("hot dog", "baby bird"). That code makes words singular with NLTK; here the
plurals are words, too, by the rules of spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lira_engine.errors import LiraError

Words = tuple[str, ...]

_IRREGULAR = {
    "person": "people",
    "mouse": "mice",
    "goose": "geese",
    "ox": "oxen",
    "foot": "feet",
    "sheep": "sheep",
}
# Qualifiers, which are part of the next word: a baby bird is no person. By COCO's supercategories.
_QUALIFIERS = {"animal": ("baby", "adult"), "vehicle": ("passenger",)}
_NO_OBJECTS = ("home plate", "train track", "baby animal", "adult animal", "baby cub", "adult cub")


class ObjectWords:
    """The words of all categories, and the category that each means."""

    def __init__(self, categories: Mapping[str, str], synonyms: Mapping[str, Sequence[str]]) -> None:
        """Take categories with their supercategories ("" for none), and further words by category.

        Raises LiraError for a word of two categories.
        """
        meant: dict[Words, str] = {}
        for name in categories:
            for word in (name, *synonyms.get(name, ())):
                words = tuple(_words(word))
                if any(map(str.isalnum, words)) and meant.setdefault(words, name) != name:
                    raise LiraError(
                        f"{word!r} is a word of {meant[words]!r} and of {name!r}, expected one of them"
                    )
        table: dict[Words, str | None] = dict(meant)
        if toilet := meant.get(("toilet",)):
            table.setdefault(("toilet", "seat"), toilet)
        for words, name in meant.items():
            for qualifier in _QUALIFIERS.get(categories[name], ()):
                table.setdefault((qualifier, *words), name)
        for text in _NO_OBJECTS:
            table.setdefault(tuple(_words(text)), None)
        for words, known in list(table.items()):
            for plural in _plurals(words[-1]):
                table.setdefault((*words[:-1], plural), known)
        self._table = table
        self._longest = max(map(len, table))

    def mentioned(self, text: str) -> list[str]:
        """Return the categories that a text mentions, in order, with repetitions."""
        found = list(self._mentions(_words(text)))
        if any(words == ("toilet",) for words, _ in found):  # "the seat of the toilet" is no chair
            found = [(words, name) for words, name in found if words not in (("seat",), ("seats",))]
        return [name for _, name in found]

    def _mentions(self, words: Sequence[str]) -> Iterator[tuple[Words, str]]:
        place = 0
        while place < len(words):
            lengths = range(min(self._longest, len(words) - place), 0, -1)
            spans = (tuple(words[place : place + length]) for length in lengths)
            span = next((span for span in spans if span in self._table), None)
            name = None if span is None else self._table[span]
            if span is not None and name is not None:
                yield span, name
            place += 1 if span is None else len(span)


def read_synonyms(name: str, text: str, categories: Iterable[str]) -> dict[str, list[str]]:
    """Return the further words by category, from the published list's form: a line per category, its name
    first, commas between the words. Raises LiraError for a line that begins with no category.
    """
    known = set(categories)
    synonyms: dict[str, list[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = [word.strip() for word in line.split(",") if word.strip()]
        if not words:
            continue
        if words[0] not in known:
            raise LiraError(f"{name}:{number} begins with {words[0][:40]!r}, expected the name of a category")
        synonyms.setdefault(words[0], []).extend(words[1:])
    return synonyms


def _words(text: str) -> list[str]:
    """Return the words in lower case, with the punctuation, so that no two-part word spans a full stop."""
    return re.findall(r"[^\W_]+|[.,;:!?()]", text.lower())


def _plurals(word: str) -> Iterator[str]:
    if word in _IRREGULAR:
        yield _IRREGULAR[word]
    elif word.endswith("child"):
        yield f"{word}ren"
    elif re.search("[^aeiou]y$", word):
        yield f"{word[:-1]}ies"
    elif re.search("(s|x|z|ch|sh)$", word):
        yield f"{word}es"
    else:
        yield f"{word}s"
        if word.endswith("man"):
            yield f"{word[:-3]}men"
        if word.endswith("o"):
            yield f"{word}es"
        if stem := re.fullmatch("(.+)fe?", word):
            yield f"{stem[1]}ves"
