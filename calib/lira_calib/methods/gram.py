"""Gram matrices of the rows that matmuls read: by them GPTQ rounds, and they tell what a changed weight
costs, without another run."""

from __future__ import annotations

import numpy as np

from lira_calib.runs.observe import Watched
from lira_engine.errors import LiraError

ROWS_AT_ONCE = 4096


class Grams:
    """The sum of x x^T over the rows x [K] of each tensor that is observed. `add` is a sink
    (lira_calib.runs.observe)."""

    def __init__(self, watched: Watched) -> None:
        """watched: weights by the tensor that they read; those of one tensor share a matrix."""
        self._tensor_of = {name: tensor for tensor, names in watched.items() for name in names}
        self._first = {tensor: names[0] for tensor, names in watched.items()}
        self._sums: dict[str, np.ndarray] = {}

    def add(self, weight: str, rows: np.ndarray) -> None:
        """Add rows [R, K] float32. Raises LiraError if one is not finite."""
        tensor = self._tensor_of[weight]
        if self._first[tensor] != weight:
            return
        if not np.isfinite(rows).all():
            raise LiraError(
                f"the matmul of {weight} reads values that are not finite: check the bundle with "
                "`lira-edge verify`"
            )
        width = rows.shape[1]
        found = self._sums.setdefault(tensor, np.zeros((width, width)))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            found += some.T @ some

    def __getitem__(self, weight: str) -> np.ndarray:
        """Return the matrix [K, K] float64 of a weight. Raises LiraError if its matmul read no rows."""
        found = self._sums.get(self._tensor_of[weight])
        if found is None:
            raise LiraError(f"no rows reached the matmul of {weight}: calibrate on more pictures")
        return found


def output_error(change: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Return, for each output, the sum of squares by which a change [K, N] of a weight moves it on the rows
    of `gram` [K, K]: [N] float64."""
    moved = np.einsum("kn,kn->n", change, gram.astype(change.dtype, copy=False) @ change, dtype=np.float64)
    return np.maximum(moved, 0)  # rounding may leave a tiny negative sum
