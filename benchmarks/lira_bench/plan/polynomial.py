"""Counts that depend on named dimensions: `{"S*context": 4, "S": 10, "1": 7}` is 4*S*context + 10*S + 7."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from lira_engine.errors import LiraError

Terms = dict[str, int]
"""Coefficients by product of dimensions: sorted names with `*` between them, or "1"."""

Dims = Mapping[str, float]
"""Values of the named dimensions. A mean number of rows need not be an integer."""


def of(shape: Iterable[int | str], factor: int = 1) -> Terms:
    """Return the number of elements in a shape, times a factor."""
    sizes = list(shape)
    names = sorted(size for size in sizes if isinstance(size, str))
    return {"*".join(names) or "1": factor * prod(size for size in sizes if isinstance(size, int))}


def plus(*many: Terms) -> Terms:
    total: Terms = {}
    for terms in many:
        for key, coefficient in terms.items():
            total[key] = total.get(key, 0) + coefficient
    return {key: coefficient for key, coefficient in total.items() if coefficient}


def value(terms: Terms, dims: Dims) -> float:
    """Return the value of a count. Raises LiraError for a dimension that `dims` lacks."""
    total = 0.0
    for key, coefficient in terms.items():
        product = float(coefficient)
        for name in () if key == "1" else key.split("*"):
            if name not in dims:
                raise LiraError(f"a count depends on {name}; expected some of {', '.join(sorted(dims))}")
            product *= dims[name]
        total += product
    return total


def largest(many: Iterable[Terms]) -> list[Terms]:
    """Return the counts that may be the largest: those that no other one bounds term by term."""
    kept: list[Terms] = []
    for terms in many:
        if any(_at_most(terms, other) for other in kept):
            continue
        kept = [other for other in kept if not _at_most(other, terms)]
        kept.append(terms)
    return kept


def _at_most(terms: Terms, other: Terms) -> bool:
    return all(coefficient <= other.get(key, 0) for key, coefficient in terms.items())
