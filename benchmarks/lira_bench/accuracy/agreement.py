"""Compare two engines on the same answer: the tokens and masks that the second one gives.

Teacher-forced: the second engine reads the tokens of the first, so that one early difference does not make
all later steps incomparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lira_bench.metrics import iou
from lira_runtime import Answer, Scene
from lira_runtime.answer import last_answer
from lira_runtime.prompts import Prompt
from lira_runtime.sampling import Sampler, make_sampler


@dataclass
class Agreement:
    """The agreement of one engine with another, summed over answers."""

    tokens: int = 0
    agreed: int = 0
    ious: list[float] = field(default_factory=list)

    def add(
        self,
        tokens: Sequence[int],
        chosen: Sequence[int],
        masks: Sequence[np.ndarray],
        expected: Sequence[np.ndarray],
    ) -> None:
        """Add an answer: `tokens` and `expected` masks of the first engine, `chosen`, `masks` of the other.

        Missing tokens and masks of the other count as disagreement.
        """
        self.tokens += len(tokens)
        self.agreed += sum(a == b for a, b in zip(chosen, tokens, strict=False))
        self.ious += [iou(a, b) for a, b in zip(masks, expected, strict=False)]
        self.ious += [0.0] * (len(expected) - len(masks))

    @property
    def share(self) -> float:
        """Return the share of equal tokens; 1.0 without tokens."""
        return self.agreed / self.tokens if self.tokens else 1.0

    @property
    def mean_iou(self) -> float:
        """Return the mean IoU of the masks; 1.0 without masks."""
        return float(np.mean(self.ious)) if self.ious else 1.0


def replay(
    scene: Scene,
    prompt: Prompt,
    tokens: Sequence[int],
    sampler: Sampler | None = None,  # greedy
    *,
    use_ilvc: bool = True,
) -> tuple[Answer, list[int]]:
    """Return an answer with the given tokens, and the token that `sampler` would have chosen at each step."""
    sampler = sampler or make_sampler()
    chosen: list[int] = []

    def choose(logits: np.ndarray) -> int:
        chosen.append(sampler(logits))
        return tokens[len(chosen) - 1]

    # The last token ends the answer. A beam search may emit it in the middle, too, where it must not end it.
    ends = frozenset() if tokens[-1] in tokens[:-1] else prompt.stop_ids & {tokens[-1]}
    given = replace(prompt, stop_ids=ends, max_new_tokens=len(tokens))
    answer = last_answer(scene.stream_prompt(given, choose, use_ilvc=use_ilvc))
    return answer, chosen
