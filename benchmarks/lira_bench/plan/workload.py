"""What is asked of a model: an image, a prompt, an answer; with the numbers that a plan assumes."""

from __future__ import annotations

from dataclasses import dataclass

from lira_bench.plan.graph_costs import ModelCosts
from lira_engine.errors import LiraError

TEXT_ROWS = 48
"""System text, question and template of a referring segmentation, in LIRA-2B's tokens."""
QUERY_ROWS = 16
"""Object queries that pass the validity rule: one row each. Depends on the image; 300 at most in LIRA-2B."""


@dataclass(frozen=True)
class Answer:
    """Tokens that are generated, masks that are decoded, regions that are encoded again."""

    name: str
    new_tokens: int
    masks: int
    regions: int

    @property
    def steps(self) -> int:
        """Passes that read one token: the first token is the prefill's, regions take passes of their own."""
        return self.new_tokens - 1 - self.regions

    def rows(self, region_rows: int) -> int:
        """Rows that the answer adds to the cache."""
        return self.steps + self.regions * region_rows


# The two answers that docs/true-size.md measures.
REFSEG = Answer("refseg", new_tokens=6, masks=1, regions=0)
GCG = Answer("gcg", new_tokens=42, masks=6, regions=3)


@dataclass(frozen=True)
class Workload:
    """One image and what is answered about it."""

    tiles: int
    prompt_rows: int
    answers: tuple[Answer, ...] = (REFSEG, GCG)


def workload(costs: ModelCosts, tiles: int | None = None) -> Workload:
    """An image of `tiles` tiles, by default the most that it can be cut into.

    Raises LiraError for a number of tiles that the model does not take, and where the prompt does not fit.
    """
    count = costs.tiles if tiles is None else tiles
    if not 1 <= count <= costs.tiles:
        raise LiraError(f"{count} tiles; expected 1 to {costs.tiles}, which {costs.name} cuts an image into")
    model = costs.model
    queries = min(QUERY_ROWS, model.num_queries)
    image = count * model.tokens_per_tile + 1 + model.num_cells + 1 + queries
    rows = image + TEXT_ROWS
    if rows > model.context_length:
        raise LiraError(f"a prompt of {rows} rows; {costs.name} has a context of {model.context_length}")
    return Workload(count, rows)
