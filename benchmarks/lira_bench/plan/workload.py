"""The workload of a plan: an image, a prompt and answers, with the assumed numbers."""

from __future__ import annotations

from dataclasses import dataclass

from lira_bench.plan.graph_costs import ModelCosts
from lira_engine.errors import LiraError

TEXT_ROWS = 48
"""LIRA-2B's tokens of system text, question and template of a referring segmentation."""
QUERY_ROWS = 16
"""Valid object queries, one row each. The number depends on the image; LIRA-2B has 300 at most."""


@dataclass(frozen=True)
class Answer:
    """Numbers of generated tokens, decoded masks and encoded regions."""

    name: str
    new_tokens: int
    masks: int
    regions: int

    @property
    def steps(self) -> int:
        """Return the number of decode steps: prefill gives the first token, a region takes its own pass."""
        return self.new_tokens - 1 - self.regions

    def rows(self, region_rows: int) -> int:
        """Return the rows that the answer adds to the cache."""
        return self.steps + self.regions * region_rows


# The two answers that docs/true-size.md measures.
REFSEG = Answer("refseg", new_tokens=6, masks=1, regions=0)
GCG = Answer("gcg", new_tokens=42, masks=6, regions=3)


@dataclass(frozen=True)
class Workload:
    """One image and the answers about it."""

    tiles: int
    prompt_rows: int
    answers: tuple[Answer, ...] = (REFSEG, GCG)


def workload(costs: ModelCosts, tiles: int | None = None) -> Workload:
    """Return the workload of an image of `tiles` tiles; default: the most.

    Raises LiraError for a number of tiles that the model does not take, and if the prompt does not fit.
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
