"""From pictures and a bundle to a recipe: record, learn, decide, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lira_calib import chart
from lira_calib.choosing import budget as budgets
from lira_calib.choosing.assemble import Assembler, StageMaterial, Unit
from lira_calib.choosing.costs import unit_seconds
from lira_calib.choosing.decide import Decision, Measures, as_asked, by_search
from lira_calib.choosing.latency import Latency, latencies
from lira_calib.choosing.llm_material import llm_material
from lira_calib.choosing.materials import decoder_material, vision_material
from lira_calib.choosing.search import Choice
from lira_calib.choosing.sensitivity import Memo
from lira_calib.data.items import NEEDED, Data, read_items
from lira_calib.data.record import record
from lira_calib.data.sequences import Sequence as Recorded
from lira_calib.data.workfolder import WorkFolder
from lira_calib.judging.held_out import Fp32Answer, write_held_out
from lira_calib.methods.rules import kept_floats, units
from lira_calib.request import Request
from lira_calib.runs.layered import LayeredLlm
from lira_calib.scoring.score import Score, Scorer
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import read_graph
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.fingerprint import lowering_fingerprint
from lira_engine.engines.recipe import (
    HELD_OUT,
    RECIPE_NAME,
    Recipe,
    StageRecipe,
    sources_of,
    write_recipe,
)
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_directory, check_target
from lira_engine.system.extras import tool_versions
from lira_engine.system.machine import cpu_name, peak_rss_mib
from lira_engine.version import __version__

FEW = 8
"""Sequences on which units are measured one by one; whole choices are measured on all."""

Progress = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Progress]]
"""Called with what is done; gives what is called with (done, in all)."""


@dataclass(frozen=True)
class Result:
    """A recipe that was written, and what there is to say about it.

    Attributes:
        kept: why weights stay floats in every recipe, by stage and weight. score: of the recipe on the
            sequences that it was calibrated on. seconds: by phase. told: lines for the user.
    """

    folder: Path
    recipe: Recipe
    decision: Decision
    units: list[Unit]
    kept: dict[str, dict[str, str]]
    score: Score
    latencies: dict[str, Latency]
    seconds: dict[str, float]
    told: list[str] = field(default_factory=list)


@contextmanager
def no_bar(_: str) -> Iterator[Progress]:
    """Show no progress."""
    yield lambda done, total: None


def calibrate(request: Request, bar: Bar = no_bar) -> Result:
    """Write the recipe that `request` asks for; go on where the same calibration was stopped.

    Raises LiraError for anything that the user can mend, most of it before the first picture is read.
    """
    request.check()
    check_target(request.output, request.overwrite, RECIPE_NAME)
    bundle = Bundle.open(request.bundle)
    if request.images is None:
        raise LiraError(_no_images(bundle))
    data = read_items(request.images, request.questions, request.scenes, request.held_out)
    identity: dict[str, Any] = {"bundle": sources_of(bundle), "data": data.identity, "asked": _asked(request)}
    identity |= {"version": __version__, "lowering": lowering_fingerprint(())}
    with WorkFolder(request.output, identity, request.overwrite) as work:
        result = _Calibration(request, bundle, data, work.path, bar).run()
        work.remove()
    return result


def _no_images(bundle: Bundle) -> str:
    name = bundle.manifest.name
    if name != "lira-nano":
        return f"{name} needs {NEEDED}"
    return (
        f"{name} is calibrated on generated scenes, and nothing else is shipped: write some with `python -m "
        "lira_nano scenes --seed 3 --count 96 -o SCENES`, then give --images SCENES/images --questions SCENES"
    )


class _Calibration:
    """One calibration, from its data to its recipe."""

    def __init__(self, request: Request, bundle: Bundle, data: Data, work: Path, bar: Bar) -> None:
        self.request, self.bundle, self.data, self.work, self.bar = request, bundle, data, work, bar
        self.seconds: dict[str, float] = {}
        models = {stage: read_graph(bundle.stage_file(stage)) for stage in STAGES}
        self.units: list[Unit] = [unit for stage, model in models.items() for unit in units(model, stage)]
        self.kept = {stage: kept_floats(model, stage) for stage, model in models.items()}

    def run(self) -> Result:
        request = self.request
        with self._phase("record") as progress:
            sequences, held_out = record(self.bundle, self.data, self.work, None, request.threads, progress)
        with Scorer(self.bundle, sequences, self.work, request.threads) as scorer:
            materials = self._materials(sequences, scorer)
            storages = [one for unit in self.units for one in request.storages_of(unit)]
            assembler = Assembler(materials, self.units, storages)
            decision = self._decide(sequences, scorer, materials, assembler)
            with self._phase("find ranges") as progress:
                stages = assembler.stages(decision.choice, progress=progress)
            with self._phase("score"):
                score = scorer.score(stages)
            if score.nonfinite is not None:
                raise LiraError(
                    f"{score.nonfinite} is not finite with this recipe: take --budget, which leaves out what "
                    "breaks the model, or keep the stage's weights floats"
                )
            with self._phase("time stages") as progress:
                timed = latencies(self.bundle, stages, scorer, self.work, progress)
        told = []
        if request.chart is not None:
            title = f"{self.bundle.manifest.name}, {request.budget}: what each unit alone does"
            told += chart.write(request.chart, decision.effects, decision.choice, title)
        recipe = self._recipe(stages, decision, score, timed)
        recipe.search["spreads"] = assembler.spreads
        with self._phase("write"):
            written = self._write(recipe, held_out)
        return Result(
            request.output, written, decision, list(self.units), self.kept, score, timed, self.seconds, told
        )

    def _materials(self, sequences: Sequence[Recorded], scorer: Scorer) -> dict[str, StageMaterial]:
        """Return what is known of the stages of which anything is to be stored in fewer bits."""
        found = {}
        threads = self.request.threads
        for stage in STAGES:
            storages = self.request.storages(stage)
            if not storages:
                continue
            with self._phase(f"learn {stage}") as progress:
                if stage == "llm":
                    llm = LayeredLlm(self.bundle, self.work / "layers", threads)
                    found[stage] = llm_material(llm, sequences, storages, self.work / "statistics", progress)
                elif stage == "pixel_decoder":
                    found[stage] = decoder_material(self.bundle, scorer, self.work, threads, progress)
                else:
                    found[stage] = vision_material(
                        self.bundle, stage, sequences, self.work, threads, progress
                    )
        return found

    def _decide(
        self,
        sequences: Sequence[Recorded],
        scorer: Scorer,
        materials: dict[str, StageMaterial],
        assembler: Assembler,
    ) -> Decision:
        request = self.request
        budget = request.parsed_budget
        if budget is None:
            return as_asked(self.units, request.asked)
        with self._phase("time matmuls"):
            seconds = unit_seconds(self.bundle, self.units, request, materials, sequences)
        few = sequences[:: max(1, len(sequences) // FEW)][:FEW]
        memo = Memo(self.work / "measured.jsonl")
        with (
            Scorer(self.bundle, few, self.work, request.threads) as alone,
            self._phase("search") as progress,
        ):

            def share(choice: Choice) -> float:
                score = scorer.score(assembler.stages(choice, final=False))
                return float("inf") if score.nonfinite else budgets.use(budget, score).share

            measures = Measures(lambda choice: alone.score(assembler.stages(choice, False)), share)
            whole = request.sensitivity == "stages"
            return by_search(self.units, seconds, measures, memo, whole, progress)

    def _recipe(
        self,
        stages: dict[str, StageRecipe],
        decision: Decision,
        score: Score,
        timed: dict[str, Latency],
    ) -> Recipe:
        request, budget = self.request, self.request.parsed_budget
        metrics = {name: round(score.metric(name), 6) for name in budgets.METRICS}
        fp32 = {name: round(score.reference(name), 6) for name in budgets.METRICS}
        found = {
            "asked": _asked(request),
            "decision": decision.record,
            "floats": decision.floats,
            "score": {"sequences": len(score.sequences), "metrics": metrics, "fp32": fp32},
            "hidden_error": round(score.hidden_error, 6),
            "stages": {name: asdict(one) for name, one in timed.items()},
            "timed_on": request.device or f"{cpu_name()}, one thread",
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "peak_rss_mib": peak_rss_mib(),
        }
        return Recipe(
            bundle=self.bundle.manifest.name,
            sources=sources_of(self.bundle),
            stages=stages,
            budget=budget,
            data=self.data.identity,
            tools={"lira-edge": __version__, **tool_versions()},
            search=found,
        )

    def _write(self, recipe: Recipe, held_out: Sequence[Recorded]) -> Recipe:
        with (
            Scorer(self.bundle, held_out, self.work, self.request.threads) as judged,
            atomic_directory(self.request.output, self.request.overwrite, RECIPE_NAME) as folder,
        ):
            answers = (Fp32Answer(tokens, masks) for tokens, masks in judged.answers())
            write_held_out(folder / HELD_OUT, held_out, answers)
            return write_recipe(recipe, folder)

    @contextmanager
    def _phase(self, name: str) -> Iterator[Progress]:
        started = time.perf_counter()
        with self.bar(name) as progress:
            yield progress
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def _asked(request: Request) -> dict[str, Any]:
    """Return the options that decide what is in a recipe: no paths of this machine."""
    names = ("scenes", "held_out", "vision", "llm", "int4", "block", "budget", "device", "sensitivity")
    return {name: getattr(request, name) for name in names}
