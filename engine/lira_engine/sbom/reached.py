"""Which installed distributions the requirements of lira-edge reach, and by which extras."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from lira_engine.system.extras import onnxruntimes

BASE = ""
"""Stands for the requirements without an extra, where an extra is expected."""


def distributions() -> dict[str, metadata.Distribution]:
    """Return the distributions that this Python imports, by normalized name, in the order of names."""
    names = {name for one in metadata.distributions() for name in one.metadata.get_all("Name", [])}
    found = {str(canonicalize_name(name)): metadata.distribution(name) for name in names}
    return dict(sorted(found.items()))


def reach(
    here: Mapping[str, metadata.Distribution], root: str, extras: Iterable[str]
) -> dict[str, frozenset[str]]:
    """Return what the requirements of `root` reach with some of its extras, itself included: normalized name
    -> the extras that are asked of it, BASE among them. Only what is installed is followed."""
    asked: dict[str, frozenset[str]] = {}
    waiting = [(root, frozenset({BASE, *extras}))]
    while waiting:
        name, wanted = waiting.pop()
        before = asked.get(name, frozenset())
        if not wanted <= before:
            asked[name] = before | wanted
            waiting += requirements(here, name, asked[name])
    return asked


def requirements(
    here: Mapping[str, metadata.Distribution], name: str, extras: Iterable[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the installed distributions that one requires, each with the extras that it asks of it. Any
    distribution of ONNX Runtime stands in for `onnxruntime`."""
    for text in here[name].requires or []:
        required = _required(text, extras)
        if required is None:
            continue
        wanted, of_it = required
        others = onnxruntimes() if wanted == "onnxruntime" and wanted not in here else (wanted,)
        for other in others:
            if canonicalize_name(other) in here:
                yield str(canonicalize_name(other)), of_it


def _required(text: str, extras: Iterable[str]) -> tuple[str, frozenset[str]] | None:
    try:
        read = Requirement(text)
    except InvalidRequirement:  # older than the rules: a requirement too many is better than one too few
        name = re.match(r"\s*([A-Za-z0-9][\w.-]*)", text)
        return (str(canonicalize_name(name[1])), frozenset({BASE})) if name else None
    if read.marker and not any(read.marker.evaluate({"extra": extra}) for extra in extras):
        return None
    return str(canonicalize_name(read.name)), frozenset({BASE, *read.extras})
