"""Samplers: plain callables on logits."""

from __future__ import annotations

import numpy as np
import pytest

from lira_engine.errors import LiraError
from lira_runtime.sampling import ScoringSampler, make_sampler

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], dtype=np.float32))


def drawn(count: int = 400, **options: float) -> list[int]:
    choose = make_sampler(seed=1, **options)  # type: ignore[arg-type]
    return [choose(LOGITS) for _ in range(count)]


def test_greedy_takes_the_first_of_equals() -> None:
    assert make_sampler()(np.array([1, 3, 3], dtype=np.float32)) == 1


def test_banned_tokens_are_never_chosen_and_logits_stay_untouched() -> None:
    logits = LOGITS.copy()
    assert make_sampler(banned=[1])(logits) == 3
    assert set(drawn(temperature=1.0)) == {0, 1, 2, 3}
    choose = make_sampler(temperature=5.0, seed=0, banned=[1, 2])
    assert {choose(logits) for _ in range(100)} == {0, 3}
    np.testing.assert_array_equal(logits, LOGITS)


def test_temperature_one_draws_the_distribution() -> None:
    shares = np.bincount(drawn(4000, temperature=1.0)) / 4000
    np.testing.assert_allclose(shares, np.exp(LOGITS), atol=0.03)


def test_top_k_keeps_the_k_best_tokens() -> None:
    assert set(drawn(temperature=1.0, top_k=2)) == {1, 3}
    assert set(drawn(temperature=1.0, top_k=99)) == {0, 1, 2, 3}
    assert make_sampler(temperature=1.0, top_k=1)(np.array([1, 3, 3], np.float32)) == 1  # as greedily


@pytest.mark.parametrize("top_p, kept", [(0.01, {1}), (0.49, {1}), (0.51, {1, 3}), (0.8, {1, 2, 3})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    assert set(drawn(temperature=1.0, top_p=top_p)) == kept


def test_top_p_needs_no_more_than_what_reaches_it_exactly() -> None:
    choose = make_sampler(temperature=1.0, top_p=0.5, seed=0)
    assert {choose(np.zeros(4, np.float32)) for _ in range(200)} == {0, 1}


def test_equal_seeds_choose_equal_tokens() -> None:
    assert drawn(temperature=1.0) == drawn(temperature=1.0)
    other = make_sampler(temperature=1.0, seed=2)
    assert [other(LOGITS) for _ in range(400)] != drawn(temperature=1.0)


def test_tiny_temperature_is_greedy() -> None:
    assert set(drawn(temperature=1e-6)) == {1}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(LiraError, match="expected"):
        make_sampler(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_are_refused(temperature: float, value: float) -> None:
    with pytest.raises(LiraError, match=r"not finite.*if this is fp32, copy or export the bundle"):
        make_sampler(temperature)(np.array([0, value], dtype=np.float32))


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 3.0}, {"temperature": 1.0, "top_k": 2, "top_p": 0.6}]
)
@pytest.mark.parametrize("banned", [(), (1,), (0, 2)])
def test_log_probabilities_are_of_all_tokens_that_are_not_banned(
    options: dict[str, float], banned: tuple[int, ...]
) -> None:
    """Whatever temperature, top-k and top-p make of them."""
    plain = make_sampler(seed=3, banned=banned, **options)  # type: ignore[arg-type]
    scoring = ScoringSampler(make_sampler(seed=3, banned=banned, **options), banned)  # type: ignore[arg-type]
    shares = np.exp(LOGITS.astype(np.float64))
    shares[list(banned)] = 0
    shares /= shares.sum()
    assert scoring.take_logprob() is None
    for _ in range(50):
        token = scoring(LOGITS + 40)
        assert token == plain(LOGITS)
        assert scoring.take_logprob() == pytest.approx(np.log(shares[token]), rel=1e-5)
        assert scoring.take_logprob() is None
