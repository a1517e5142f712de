"""Counts that depend on named dimensions: `{"S*context": 4, "S": 10, "1": 7}` is 4*S*context + 10*S + 7."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from lira_engine.errors import LiraError

Terms = dict[str, int]
"""Coefficients by the product of dimensions that they go with, names sorted, "1" for none."""

Dims = Mapping[str, float]
"""What the named dimensions are. A mean number of rows need not be an integer."""


def of(shape: Iterable[int | str], factor: int = 1) -> Terms:
    """The number of elements in a shape, times a factor."""
    sizes = list(shape)
    names = sorted(size for size in sizes if isinstance(size, str))
    return {"*".join(names) or "1": factor * prod(size for size in sizes if isinstance(size, int))}


def plus(*many: Terms) -> Terms:
    total: Terms = {}
    for terms in many:
        for key, coefficient in terms.items():
            total[key] = total.get(key, 0) + coefficient
    return {key: coefficient for key, coefficient in total.items() if coefficient}


def times(terms: Terms, factor: int) -> Terms:
    return {key: factor * coefficient for key, coefficient in terms.items() if factor}


def value(terms: Terms, dims: Dims) -> float:
    """Raises LiraError for a dimension that `dims` lacks."""
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
    """Those that may be the largest, whatever the dimensions are: none is at most another, term by term."""
    kept: list[Terms] = []
    for terms in many:
        if any(_at_most(terms, other) for other in kept):
            continue
        kept = [other for other in kept if not _at_most(other, terms)]
        kept.append(terms)
    return kept


def _at_most(terms: Terms, other: Terms) -> bool:
    return all(coefficient <= other.get(key, 0) for key, coefficient in terms.items())
