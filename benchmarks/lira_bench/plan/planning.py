"""A plan: a model, a device and a precision, with the memory that they take and the times that they give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lira_bench.plan.devices import Device
from lira_bench.plan.efficiency import Efficiency
from lira_bench.plan.graph_costs import ModelCosts
from lira_bench.plan.memory import Memory, plan_memory
from lira_bench.plan.precision import StagePrecision, choices
from lira_bench.plan.roofline import Prediction, Roofline
from lira_bench.plan.workload import Workload
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
        """For JSON: seconds, bytes, tokens per second."""
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
    """Raises LiraError for a precision or block size that the device does not have."""
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


def plans_for(
    costs: ModelCosts,
    devices: Iterable[Device],
    precision: str,
    workload: Workload,
    block: int | None = None,
) -> tuple[list[Plan], list[Device]]:
    """Plans, and the devices that have no engines of this precision."""
    listed = list(devices)
    able = [device for device in listed if precision in choices(device.kind)]
    unable = [device for device in listed if device not in able]
    return [make_plan(costs, device, precision, workload, block) for device in able], unable
