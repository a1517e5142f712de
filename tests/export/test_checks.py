"""Which pictures become check vectors, and how close their decisions are recorded to have been."""

from __future__ import annotations

import numpy as np
import torch

from lira_engine.bundle.check_vectors import CheckVectors
from lira_export import checks


def test_a_margin_is_the_least_change_that_turns_a_decision_over() -> None:
    sums = torch.rand(1, 6, 9, generator=torch.Generator().manual_seed(3))
    sums[0, 5] = 0.0  # owns nothing
    margins = checks.owner_margins(sums)
    assert margins.shape == (1, 6) and margins.dtype == np.float32

    def valid(changed: torch.Tensor) -> list[bool]:
        owners = set(changed[0].argmax(0).tolist())
        return [query in owners for query in range(6)]

    before = valid(sums)
    assert True in before and not all(before)
    for query, margin in enumerate((margins[0] * float(sums.max())).tolist()):
        for share, turned in ((0.999, False), (1.001, True)):
            moved = sums.clone()
            moved[0, query] += share * margin * (-1 if before[query] else 1)
            assert (valid(moved)[query] != before[query]) == turned, query


def test_a_query_that_ties_has_no_margin() -> None:
    sums = torch.tensor([[[0.5, 0.2], [0.5, 0.1], [0.1, 0.1]]])
    np.testing.assert_allclose(checks.owner_margins(sums), [[0.2, 0.0, 0.2]], atol=1e-7)


def test_a_picture_without_near_ties_is_preferred() -> None:
    def vectors(margin: float, noise: float) -> CheckVectors:
        return CheckVectors({}, {}, {"valid": noise}, {"valid": np.array([[0.5, margin]])})

    tied, calm, noisy = vectors(1e-6, 1e-6), vectors(1e-2, 1e-6), vectors(1e-2, 1e-4)
    assert checks._calmest([tied, noisy, calm], checks.CALM) is calm
    assert checks._calmest([tied, noisy], checks.CALM) is noisy
    assert checks._calmest([tied], checks.CALM) is tied
