"""Make plans: the memory and times of a model on a device in a precision."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lira_bench.plan import devices
from lira_bench.plan.device import Device
from lira_bench.plan.efficiency import BYTES, EFFICIENCY, Efficiency, Share
from lira_bench.plan.graph_costs import ModelCosts
from lira_bench.plan.memory import Memory, plan_memory
from lira_bench.plan.precision import Build, StagePrecision, choices
from lira_bench.plan.roofline import AnswerTime, Prediction, Roofline
from lira_bench.plan.workload import Workload
from lira_engine.errors import LiraError
from lira_runtime.timings import AUTHORS_TOKENS_PER_SECOND


@dataclass(frozen=True)
class Plan:
    """A plan. `fastest`, `slowest`: the prediction with all shares at the ends of their ranges."""

    model: str
    device: Device
    precision: str
    precisions: dict[str, StagePrecision]
    efficiency: Efficiency
    memory: Memory
    prediction: Prediction
    fastest: Prediction
    slowest: Prediction

    def used(self) -> dict[str, Share]:
        """Return the shares that the prediction depends on, by class, that of the bandwidth first."""
        works = {BYTES, *(work for stage in self.prediction.stages.values() for work in stage.work)}
        return {name: share for name, share in self.efficiency.shares().items() if name in works}

    def guesses(self) -> list[str]:
        """Return the classes whose share is a guess, of those in use."""
        return [name for name, share in self.used().items() if share.basis == "guess"]

    def joules(self, answer: AnswerTime) -> float | None:
        """Return an ESTIMATE of an answer's energy: at most the limit of the power mode that the figures are
        of, all the time. None if no limit is known."""
        return answer.total * self.device.watts[-1] if self.device.watts else None

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON, in seconds, bytes and tokens per second."""
        prediction, memory = self.prediction, self.memory
        return {
            "format": "lira-plan",
            "format_version": 1,
            "model": self.model,
            "device": asdict(self.device),
            "precision": self.precision,
            "stage_precisions": {stage: kept.matrices for stage, kept in self.precisions.items()},
            "efficiency": asdict(self.efficiency),
            "guesses": self.guesses(),
            "workload": {"tiles": prediction.workload.tiles, "prompt_rows": prediction.workload.prompt_rows},
            "memory": {
                **memory.parts(),
                "total": memory.total,
                "usable": memory.usable,
                "fits": memory.fits,
                "largest": memory.largest,
                "rows_needed": memory.rows_needed,
                "rows_held": memory.rows_held,
                "kv_capacity": memory.kv_capacity,
                "mapped": memory.mapped,
            },
            "seconds": {
                "preprocess": prediction.preprocess,
                **{name: stage.seconds for name, stage in prediction.stages.items()},
                "ttft": prediction.ttft,
                "ttft_range": [self.fastest.ttft, self.slowest.ttft],
                "region": prediction.region,
            },
            "answers": {
                name: {
                    **asdict(time.answer),
                    "total": time.total,
                    "decode_tokens_per_second": time.decode_tokens_per_second,
                    "end_to_end_tokens_per_second": time.end_to_end_tokens_per_second,
                    "joules_at_most": self.joules(time),
                }
                for name, time in prediction.answers.items()
            },
            "authors_tokens_per_second": AUTHORS_TOKENS_PER_SECOND,
        }


def make_plan(costs: ModelCosts, device: Device, build: Build, workload: Workload) -> Plan:
    """Make a plan. Raises LiraError for a precision or block size that the device does not have."""
    precisions = build.stages(costs.stages, device)
    efficiency = EFFICIENCY[device.family]

    def predict(shares: Efficiency) -> Prediction:
        return Roofline(costs, device, precisions, shares).predict(workload)

    return Plan(
        costs.name,
        device,
        build.precision,
        precisions,
        efficiency,
        plan_memory(costs, device, precisions, workload, efficiency),
        predict(efficiency),
        fastest=predict(efficiency.bounded("high")),
        slowest=predict(efficiency.bounded("low")),
    )


def plans_for_all(costs: ModelCosts, build: Build, workload: Workload) -> tuple[list[Plan], list[str]]:
    """Return plans for all devices with engines of this precision, and why others are left out, such as this
    machine if it cannot be measured. Raises LiraError for a precision that no device has."""
    plans, left_out = [], []
    for name in devices.names():
        try:
            build.check(devices.kind_of(name), name)  # before anything is measured
            plans.append(make_plan(costs, devices.find(name), build, workload))
        except LiraError as error:
            left_out.append(f"{name} is left out: {error}.")
    if not plans:
        known = dict.fromkeys((*choices("cpu"), *choices("gpu")))
        raise LiraError(f"precision {build.precision!r} is not known; expected {', '.join(known)}")
    return plans, left_out
