"""Describe a recipe, as titled tables of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lira_engine.engines.recipe import HELD_OUT, Recipe, StageRecipe, codes_key, scales_key, smoothing_key

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN = 8

Table = tuple[str, list[tuple[str, ...]]]
"""(title, rows of cells)"""


def recipe_tables(folder: Path, recipe: Recipe) -> list[Table]:
    """Return tables about a recipe that was read from `folder`."""
    size = sum(entry.bytes for entry in recipe.files.values())
    held_out = sum(name.startswith(f"{HELD_OUT}/") for name in recipe.files)
    about: list[tuple[str, ...]] = [
        ("folder", str(folder)),
        ("digest", recipe.digest[:12]),
        ("for bundle", recipe.bundle),
        ("budget", recipe.budget.text if recipe.budget else "none"),
        ("files", f"{len(recipe.files)}, {_size(size)}; {held_out} of them in {HELD_OUT}/"),
        *(("made with", f"{name} {version}") for name, version in recipe.tools.items()),
    ]
    tables: list[Table] = [(f"recipe for {recipe.bundle}", about)]
    for stage, part in recipe.stages.items():
        rows = [*_form_rows(part), *_smoothing_rows(part)]
        tables.append((f"{stage}: weights, form, number, bytes in the recipe", rows))
    return [*tables, *_value_tables("data", recipe.data), *_value_tables("search", recipe.search)]


def _form_rows(part: StageRecipe) -> list[tuple[str, ...]]:
    """Return a row for the weights of all blocks that share a name and a form."""
    groups: dict[tuple[str, str], list[str]] = {}
    for weight, form in part.forms.items():
        groups.setdefault((_NUMBER.sub("*", weight), form.text()), []).append(weight)
    rows: list[tuple[str, ...]] = []
    for (_, stored), weights in groups.items():
        brought = sum(_bytes(part, (codes_key(weight), scales_key(weight))) for weight in weights)
        size = _size(brought) if brought else "computed at the build"
        rows.append((_ranged(weights), stored, str(len(weights)), size))
    return rows


def _smoothing_rows(part: StageRecipe) -> list[tuple[str, ...]]:
    if not part.smoothing:
        return []
    size = sum(_bytes(part, (smoothing_key(one.name),)) for one in part.smoothing)
    return [("scales moved into weights", "smoothing", str(len(part.smoothing)), _size(size))]


def _bytes(part: StageRecipe, keys: Iterable[str]) -> int:
    brought = set(part.tensors)
    return sum(part.tensors[key].nbytes for key in keys if key in brought)


def _ranged(names: list[str]) -> str:
    """Return names that differ in their numbers only as one: "layers.0-3,7.mlp.up"."""
    found = [[int(number) for number in _NUMBER.findall(name)] for name in names]
    columns = iter([sorted(set(column)) for column in zip(*found, strict=True)])
    return _NUMBER.sub(lambda match: _runs(next(columns)), names[0])


def _runs(numbers: list[int]) -> str:
    """Return sorted numbers as text such as "0-3,7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _value_tables(title: str, values: Mapping[str, object]) -> list[Table]:
    """Return a table of the plain values, and one for each of those that hold others."""
    rows: list[tuple[str, ...]] = []
    inner: list[Table] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and any(isinstance(one, (Mapping, list)) for one in value.values()):
            inner += _value_tables(f"{title}: {key}", value)
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            inner.append((f"{title}: {key}", _lined_up(value)))
        elif isinstance(value, Mapping) and len(value) > _SHOWN and not _digests(value):
            inner.append((f"{title}: {key}", [(one, _plain(found)) for one, found in value.items()]))
        elif isinstance(value, Mapping):
            rows.append((key, _listed([f"{one} {_plain(found)}" for one, found in value.items()])))
        elif isinstance(value, list):
            rows.append((key, _listed([_plain(one) for one in value])))
        else:
            rows.append((key, _plain(value)))
    return [*([(title, rows)] if rows else []), *inner]


def _digests(values: Mapping[str, object]) -> bool:
    return all(_DIGEST.fullmatch(str(value)) for value in values.values())


def _lined_up(objects: list[Mapping[str, object]]) -> list[tuple[str, ...]]:
    """Return objects as rows below a row of their keys."""
    keys = list(dict.fromkeys(key for one in objects for key in one))
    rows = [tuple(_plain(one.get(key, "")) for key in keys) for one in objects]
    return [tuple(keys), *rows]


def _listed(texts: list[str]) -> str:
    more = [f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return ", ".join([*texts[:_SHOWN], *more])


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:12] if _DIGEST.fullmatch(str(value)) else str(value)


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
