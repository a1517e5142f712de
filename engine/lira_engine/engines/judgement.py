"""The contract of a judge, who decides by masks and tokens whether engines are kept: those of a recipe, and
those that decide near ties otherwise than the reference.

Judges live in packages that lira_engine does not import: an entry point names the one that is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lira_engine.cuda.driver import DriverName
from lira_engine.engines.near_ties import Flip
from lira_engine.engines.precision import MIXED
from lira_engine.errors import LiraError
from lira_engine.system.extras import lacking

if TYPE_CHECKING:
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.engines.recipe import Recipe

JUDGES = "lira_edge.judges"
NAMES = {"tokens": "tokens that agree with fp32", "iou": "mask IoU with fp32", "ciou": "cIoU"}
"""Metrics, and their names for people. Each is a share of 1."""


@dataclass(frozen=True)
class Loss:
    """How far a metric fell below that of fp32, as a share of 1.

    Attributes:
        low, high: of the 95 % interval that resampling scenes gives. limit: the most that is accepted; None
            if the budget does not limit this metric.
    """

    loss: float
    low: float
    high: float
    limit: float | None = None

    @property
    def accepted(self) -> bool:
        return self.limit is None or self.loss <= self.limit

    def text(self) -> str:
        """Return text such as "loses 0.31 points (95 %: -0.10 to 0.80), at most 0.50"."""
        most = "" if self.limit is None else f", at most {_points(self.limit)}"
        between = f"95 %: {_points(self.low)} to {_points(self.high)}"
        return f"loses {_points(self.loss)} points ({between}){most}"


def _points(share: float) -> str:
    return f"{round(100 * share, 2) + 0.0:.2f}"  # no "-0.00"


@dataclass(frozen=True)
class Judgement:
    """What a judge found.

    Attributes:
        ran: what it ran: "engines", or "lowered graphs" by ONNX Runtime on the CPU, of engines that the
            building machine cannot run. pictures, questions: how many it judged. on: which ones.
        metrics: of the engines, and of fp32 as "fp32 NAME". losses: by metric.
        budget: that the recipe asks for, as text. refused: why the engines are beyond it; "" if they are not.
        forced: they were kept although they are refused. not_judged: why nothing was judged; "" if it was.
    """

    ran: str = ""
    pictures: int = 0
    questions: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)
    budget: str = ""
    refused: str = ""
    forced: bool = False
    not_judged: str = ""
    on: str = "held-out questions"

    def rows(self) -> list[tuple[str, str]]:
        """Return rows of a table about it."""
        if self.not_judged:
            return [("masks", f"not judged: {self.not_judged}")]
        count = f"{self.pictures} picture{'s' if self.pictures != 1 else ''}"
        on = f"{self.ran} on {self.questions} {self.on} about {count}"
        rows = [("judged", on), ("budget", self.budget)]
        for name, loss in self.losses.items():
            before = self.metrics.get(f"fp32 {name}")
            beside = "" if before is None else f", fp32 {100 * before:.2f} %"
            found = f"{100 * self.metrics[name]:.2f} %{beside}: {loss.text()}"
            rows.append((NAMES.get(name, name), found))
        if self.refused:
            rows.append(("refused", f"{self.refused}{'; kept by --force' if self.forced else ''}"))
        return rows


@dataclass(frozen=True)
class Candidate:
    """Engines to be judged.

    Attributes:
        recipe, recipe_folder: theirs, with held-out questions; None for engines without a recipe, of which
            the `flips` are judged. folder: holds the engine files of `target`; or, if `graphs`, the lowered
            graphs STAGE.onnx, which ONNX Runtime runs on the CPU. options: as an opener takes them.
        progress: is called with what is judged now. precision: of the engines. flips: near ties that came out
            otherwise on the check vectors. driver: see `lira_engine.open.open_engines`.
    """

    bundle: Bundle
    recipe: Recipe | None
    recipe_folder: Path | None
    target: str
    options: Mapping[str, Any]
    folder: Path
    graphs: bool = False
    threads: int | None = None
    progress: Callable[[str], None] = lambda what: None
    precision: str = MIXED
    flips: tuple[Flip, ...] = ()
    driver: DriverName = "auto"


class Judge(Protocol):
    """Runs held-out questions on a candidate and compares it with the fp32 bundle; of one without a recipe,
    questions about the check vectors' picture, with the recorded decisions and with the flipped ones."""

    def __call__(self, candidate: Candidate) -> Judgement:
        """Return the judgement, also of engines beyond the budget. Raises LiraError for a recipe without what
        the judge needs, and engines with values that are not finite."""
        ...


def installed_judge() -> Judge:
    """Return the judge that is installed. Raises LiraError if there is none, or more than one."""
    entries = list(metadata.entry_points(group=JUDGES))
    if len(entries) != 1:
        found = ", ".join(f"{entry.name} ({entry.value})" for entry in entries) or "none"
        raise LiraError(
            f"judging masks and tokens needs one judge (entry points {JUDGES}), found {found}: "
            "install lira-edge again"
        )
    missing, mend = lacking(entries[0])
    if missing:
        raise LiraError(f"judge {entries[0].name} needs {', '.join(missing)}: run {mend}")
    judge: Judge = entries[0].load()
    return judge


def judged_flips(candidate: Candidate) -> Judgement:
    """Return what the installed judge says of a candidate's flips; "not judged", with the reason, where none
    can run: near ties are what rounding alone may turn over, so the reference itself decides them otherwise
    on such a processor. Raises LiraError as `Judge` does."""
    try:
        judge = installed_judge()
    except LiraError as error:
        return Judgement(not_judged=str(error))
    return judge(candidate)
