"""Samplers: plain callables `logits [V] -> token id`."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from lira_engine.errors import LiraError
from lira_runtime import arguments

_LEAST_TEMPERATURE = 1e-250

Sampler = Callable[[np.ndarray], int]


def make_sampler(
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    banned: Collection[int] = (),
) -> Sampler:
    """Return a sampler: argmax at temperature 0, else a draw from softmax(logits / temperature).

    Draws from the `top_k` best tokens (0: all), cut to the smallest set that holds `top_p` of the
    probability. Equal seeds choose equal tokens from equal logits. Tokens in `banned` are never chosen.
    Raises LiraError for values out of range. The sampler raises LiraError for logits that are not finite,
    from an engine that overflowed.
    """
    expected = "0 (greedy) or more"
    temperature = arguments.real("temperature", temperature, expected)
    if not (np.isfinite(temperature) and temperature >= 0):
        raise LiraError(f"temperature is {temperature}; expected {expected}")
    expected = "more than 0, at most 1"
    top_p = arguments.real("top_p", top_p, expected)
    if not 0 < top_p <= 1:
        raise LiraError(f"top_p is {top_p}; expected {expected}")
    top_k = arguments.whole("top_k", top_k, "0 (all tokens) or more", 0)
    seed = arguments.optional_whole("seed", seed, "0 or more", 0)
    # At a lower temperature the division overflows.
    divisor = max(temperature, _LEAST_TEMPERATURE)
    banned_ids = np.array(sorted(banned), dtype=np.int64)
    random = np.random.default_rng(seed)

    def allowed(logits: np.ndarray) -> np.ndarray:
        check_finite(logits)
        if banned_ids.size:
            logits = logits.copy()
            logits[banned_ids] = -np.inf
        return logits

    def greedy(logits: np.ndarray) -> int:
        return int(np.argmax(allowed(logits)))

    def sample(logits: np.ndarray) -> int:
        scores = allowed(logits).astype(np.float64) / divisor
        order = np.argsort(-scores, kind="stable")
        if top_k:
            order = order[:top_k]
        probabilities = np.exp(scores[order] - scores[order[0]])
        probabilities /= probabilities.sum()
        # Keep each token if the ones before it hold less than top_p: at least the first.
        kept = np.count_nonzero(np.cumsum(probabilities) - probabilities < top_p)
        probabilities = probabilities[:kept] / probabilities[:kept].sum()
        return int(random.choice(order[:kept], p=probabilities))

    return sample if temperature > 0 else greedy


class ScoringSampler:
    """A sampler that knows the probability of the token that it chose last: that of softmax(logits) over all
    tokens but the banned ones, whatever `choose` makes of them."""

    def __init__(self, choose: Sampler, banned: Collection[int] = ()) -> None:
        self._choose = choose
        self._banned = list(banned)
        self._logprob: float | None = None

    def __call__(self, logits: np.ndarray) -> int:
        token = self._choose(logits)
        scores = logits.astype(np.float64)
        scores[self._banned] = -np.inf
        scores -= scores.max()
        self._logprob = float(scores[token] - np.log(np.exp(scores).sum()))
        return token

    def take_logprob(self) -> float | None:
        """Return the natural logarithm of that probability, once; None where no token was chosen since."""
        taken, self._logprob = self._logprob, None
        return taken


def check_finite(logits: np.ndarray) -> None:
    """Raises LiraError if a logit is infinite or no number: one overflowed, or a weight is damaged."""
    if not np.isfinite(logits).all():
        raise LiraError(
            "the LLM engine gave logits that are not finite, expected finite numbers: take precision fp32, "
            "or if this is fp32, copy or export the bundle again, since its weights are damaged"
        )
