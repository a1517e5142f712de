"""Inputs for hypothesis: a corpus entry with a few changes, which it chooses and can undo."""

from __future__ import annotations

from random import Random

from fuzz.kind import Kind
from fuzz.mutate import mutated
from hypothesis import strategies as st


def inputs(kind: Kind) -> st.SearchStrategy[bytes]:
    """Return inputs of a kind."""
    return st.builds(
        _changed,
        st.sampled_from(kind.corpus()),
        st.just(kind),
        st.integers(1, 2),
        st.randoms(use_true_random=False),
    )


def _changed(data: bytes, kind: Kind, times: int, random: Random) -> bytes:
    for _ in range(times):
        data = mutated(data, kind.form, random)
    return data
