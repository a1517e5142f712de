"""How much harm each unit does when it alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lira_calib.data.journal import Journal

HIDDEN_SHARE = 0.01
"""What the relative error of hidden states counts beside masks and tokens: enough to order units that change
neither, too little to outweigh one that does."""


class UnitScore(Protocol):
    """What `lira_calib.scoring.score.Score` says of a recipe."""

    @property
    def hidden_error(self) -> float: ...
    @property
    def nonfinite(self) -> str | None: ...
    def metric(self, name: str) -> float: ...


@dataclass(frozen=True)
class Effect:
    """What quantizing one unit alone does to answers whose tokens are given.

    Attributes:
        unit: STAGE/NAME. option: name of its form.
        mask_iou: mean IoU of the masks with those of fp32. tokens: share of next tokens that are those of
            fp32. hidden_error: of the language model's hidden states, root mean square, relative.
        nonfinite: the first tensor that is not finite, if there is one.
    """

    unit: str
    option: str
    mask_iou: float
    tokens: float
    hidden_error: float
    nonfinite: str | None = None

    @property
    def harm(self) -> float:
        """Lost IoU of the masks plus the share of other tokens, and a little of the hidden error; infinite if
        an output is not finite."""
        if self.nonfinite is not None:
            return float("inf")
        return (1 - self.mask_iou) + (1 - self.tokens) + HIDDEN_SHARE * self.hidden_error

    def as_dict(self) -> dict[str, Any]:
        return {key: _rounded(value) for key, value in asdict(self).items() if value is not None}


class Memo:
    """Measured results by key, kept in a journal, so that a killed calibration goes on behind them."""

    def __init__(self, path: Path) -> None:
        with Journal(path) as journal:
            self.known: dict[str, Any] = {one["of"]: one["found"] for one in journal.records()}
        self._path = path

    def remember(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return the known result of a key, or measure it and write it down; it is what JSON can hold."""
        if key not in self.known:
            value = measure()
            with Journal(self._path) as journal:
                journal.append({"of": key, "found": value})
            self.known[key] = value
        return self.known[key]


def measure_effects(
    asked: Sequence[tuple[str, str]],
    score: Callable[[str, str], UnitScore],
    memo: Memo,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Effect]:
    """Return the effect of each (unit, option), in their order; `score` measures one of them."""

    def effect(unit: str, option: str) -> dict[str, Any]:
        found = score(unit, option)
        return Effect(
            unit,
            option,
            mask_iou=found.metric("iou"),
            tokens=found.metric("tokens"),
            hidden_error=found.hidden_error if found.nonfinite is None else 0.0,
            nonfinite=found.nonfinite,
        ).as_dict()

    effects = []
    for done, (unit, option) in enumerate(asked):
        progress(done, len(asked))
        known = memo.remember(f"effect {unit} {option}", lambda: effect(unit, option))  # noqa: B023
        effects.append(Effect(**known))
    progress(len(asked), len(asked))
    return effects


def _rounded(value: Any) -> Any:
    return round(value, 9) if isinstance(value, float) else value
