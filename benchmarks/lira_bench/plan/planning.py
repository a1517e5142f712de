"""Make plans: the memory and times of a model on a device in a precision."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lira_bench.plan import devices
from lira_bench.plan.device import Device
from lira_bench.plan.efficiency import Efficiency
from lira_bench.plan.graph_costs import ModelCosts
from lira_bench.plan.memory import Memory, plan_memory
from lira_bench.plan.precision import GPU_PRECISIONS, StagePrecision, check_precision
from lira_bench.plan.roofline import Prediction, Roofline
from lira_bench.plan.workload import Workload
from lira_engine.errors import LiraError
from lira_runtime.timings import AUTHORS_TOKENS_PER_SECOND


@dataclass(frozen=True)
class Plan:
    model: str
    device: Device
    precision: str
    precisions: dict[str, StagePrecision]
    efficiency: Efficiency
    memory: Memory
    prediction: Prediction

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
            "workload": {"tiles": prediction.workload.tiles, "prompt_rows": prediction.workload.prompt_rows},
            "memory": {
                **memory.parts(),
                "total": memory.total,
                "usable": memory.usable,
                "fits": memory.fits,
                "largest": memory.largest,
                "rows_needed": memory.rows_needed,
                "rows_held": memory.rows_held,
            },
            "seconds": {
                "preprocess": prediction.preprocess,
                **{name: stage.seconds for name, stage in prediction.stages.items()},
                "ttft": prediction.ttft,
                "region": prediction.region,
            },
            "answers": {
                name: {
                    **asdict(time.answer),
                    "total": time.total,
                    "decode_tokens_per_second": time.decode_tokens_per_second,
                    "end_to_end_tokens_per_second": time.end_to_end_tokens_per_second,
                }
                for name, time in prediction.answers.items()
            },
            "authors_tokens_per_second": AUTHORS_TOKENS_PER_SECOND,
        }


def make_plan(
    costs: ModelCosts, device: Device, precision: str, workload: Workload, block: int | None = None
) -> Plan:
    """Make a plan. Raises LiraError for a precision or block size that the device does not have."""
    roofline = Roofline(costs, device, precision, block)
    memory = plan_memory(costs, device, roofline.precisions, workload, roofline.efficiency)
    return Plan(
        costs.name,
        device,
        precision,
        roofline.precisions,
        roofline.efficiency,
        memory,
        roofline.predict(workload),
    )


def plans_for_all(
    costs: ModelCosts, precision: str, workload: Workload, block: int | None = None
) -> tuple[list[Plan], list[str]]:
    """Return plans for all devices with engines of this precision, and why others are left out, such as this
    machine if it cannot be measured. Raises LiraError for a precision that no device has."""
    plans, left_out = [], []
    for name in devices.names():
        try:
            check_precision(precision, devices.kind_of(name), name)  # before anything is measured
            device = devices.find(name)
        except LiraError as error:
            left_out.append(f"{name} is left out: {error}.")
            continue
        plans.append(make_plan(costs, device, precision, workload, block))
    if not plans:
        raise LiraError(f"precision {precision!r} is not known; expected {', '.join(GPU_PRECISIONS)}")
    return plans, left_out
