"""Choose items so that the groups are mixed as in the paper's table 1, and no picture is in two sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

COMPREHENSION, REFERRING, CONVERSATION = "comprehension", "referring", "conversation"
GROUPS = {COMPREHENSION: 411, REFERRING: 168, CONVERSATION: 206}
"""Thousands of samples by group in LIRA's training (paper, table 1)."""


class Grouped(Protocol):
    """What is chosen: something about a task of a group."""

    @property
    def group(self) -> str: ...

    @property
    def task(self) -> str: ...


T = TypeVar("T", bound=Grouped)
V = TypeVar("V")


@dataclass
class Chosen(Generic[T]):
    """The chosen items of each set. `found`: how many; `short`: whether that is fewer than asked for."""

    sets: list[list[T]]
    found: int
    short: bool


def quotas(count: int, present: Sequence[str]) -> dict[str, int]:
    """Return how many of `count` items each of the `present` groups gets, by largest remainders."""
    shares = {group: GROUPS[group] for group in GROUPS if group in present}
    exact = {group: count * share / sum(shares.values()) for group, share in shares.items()}
    found = {group: int(value) for group, value in exact.items()}
    for group in sorted(exact, key=lambda g: found[g] - exact[g])[: count - sum(found.values())]:
        found[group] += 1
    return found


def choose(
    offered: Mapping[str, Sequence[T]], counts: Sequence[int], seed: int, usable: Callable[[T], bool]
) -> Chosen[T]:
    """Choose `counts[i]` items for set i from the items `offered` by picture.

    Takes an item per picture first, then more of the same pictures, and only then items of a group that has
    enough. `usable` is asked before an item is taken, and never twice.
    """
    random = np.random.default_rng(seed)
    pictures = {name: _shuffled(offered[name], random) for name in _shuffled(sorted(offered), random)}
    present = sorted({item.group for items in offered.values() for item in items})
    sets: list[_Set[T]] = [_Set(count, quotas(count, present)) for count in counts]
    spare = []
    for name, items in pictures.items():
        for one in sorted(sets, key=lambda one: -one.missing):
            if one.take(items, usable, within_quotas=True):
                one.pictures.append(name)
                break
        else:
            spare.append(name)
    for within_quotas in (True, False):
        for name in spare if not within_quotas else ():
            one = max(sets, key=lambda one: one.missing)
            if one.take(pictures[name], usable, within_quotas=False):
                one.pictures.append(name)
        for one in sets:
            while any([one.take(pictures[name], usable, within_quotas) for name in one.pictures]):
                pass
    found = sum(len(one.items) for one in sets)
    return Chosen([one.items for one in sets], found, found < sum(counts))


@dataclass
class _Set(Generic[T]):
    count: int
    left: dict[str, int]  # of each group's quota
    items: list[T] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    tasks: Counter[str] = field(default_factory=Counter)  # chosen so far

    @property
    def missing(self) -> float:
        """Share of the set that is not chosen yet."""
        return 1 - len(self.items) / self.count if self.count else 0.0

    def take(self, items: list[T], usable: Callable[[T], bool], within_quotas: bool) -> bool:
        """Move the first usable item out of `items` into the set, of the group that lacks most and its rarest
        task; return whether there was one."""
        if not self.missing:
            return False
        for item in sorted(items, key=self._order):
            if within_quotas and self.left[item.group] <= 0:
                return False
            items.remove(item)
            if usable(item):
                self.left[item.group] -= 1
                self.tasks[item.task] += 1
                self.items.append(item)
                return True
        return False

    def _order(self, item: T) -> tuple[float, int]:
        return -self.left[item.group] / GROUPS[item.group], self.tasks[item.task]


def _shuffled(values: Sequence[V], random: np.random.Generator) -> list[V]:
    return [values[index] for index in random.permutation(len(values))]
