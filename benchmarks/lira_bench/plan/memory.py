"""The memory that a model takes while it answers, and whether a device has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lira_bench.plan.device import Device
from lira_bench.plan.efficiency import Efficiency
from lira_bench.plan.graph_costs import ModelCosts
from lira_bench.plan.precision import StagePrecision
from lira_bench.plan.workload import Workload

GIB = 2**30
OVERHEAD = "process and libraries"


@dataclass(frozen=True)
class Memory:
    """Memory by part, bytes.

    Attributes:
        weights: of every stage; all engines are open at once.
        mapped: the language model's second copy, a file that is mapped: on disk and in the page cache, which
            the system takes back when it needs memory. Not in the total.
        kv_row: of one row of the cache. rows_needed: rows of prompt, longest answer and regions.
        rows_held: rows with allocated memory: the whole context on a GPU; on a CPU, where a cache grows with
            the rows in use, the needed rows.
        features: output of the pixel encoder, kept for the pixel decoder.
        activations: of the stage with the most, named in `largest_stage`.
        overhead: of the process and its libraries. usable: the device's memory without the reserve.
    """

    weights: Mapping[str, int]
    mapped: int
    kv_row: int
    rows_needed: int
    rows_held: int
    context_length: int
    features: int
    activations: int
    largest_stage: str
    overhead: int
    usable: int

    @property
    def kv_cache(self) -> int:
        return self.kv_row * self.rows_held

    @property
    def kv_capacity(self) -> int:
        """Return the bytes of a cache of the whole context."""
        return self.kv_row * self.context_length

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    @property
    def spare(self) -> int:
        """Return the bytes left over, negative if the model does not fit."""
        return self.usable - self.total

    @property
    def fits(self) -> bool:
        return self.spare >= 0 and self.rows_needed <= self.context_length

    @property
    def largest(self) -> str:
        """Return the largest part that depends on the model and its precision."""
        parts = self.parts()
        return max((name for name in parts if name != OVERHEAD), key=lambda name: parts[name])

    def parts(self) -> dict[str, int]:
        return {
            **{f"weights of {stage}": size for stage, size in self.weights.items()},
            "KV cache": self.kv_cache,
            "image features": self.features,
            f"activations ({self.largest_stage})": self.activations,
            OVERHEAD: self.overhead,
        }


def plan_memory(
    costs: ModelCosts,
    device: Device,
    precisions: Mapping[str, StagePrecision],
    workload: Workload,
    efficiency: Efficiency,
) -> Memory:
    """Plan the memory. Tiles are encoded one by one; the language model's largest pass is the prefill."""
    prompt = workload.prompt_rows
    needed = prompt + max((answer.rows(costs.region_rows) for answer in workload.answers), default=0)
    dims = {
        "T": 1.0,
        "M": float(workload.tiles * costs.model.tokens_per_tile),
        "S": float(prompt),
        "K": 1.0,
        "context": float(prompt),
    }
    peaks = {
        stage: round(stage_costs.peak_bytes(dims) * precisions[stage].rest / 4)
        for stage, stage_costs in costs.stages.items()
    }
    largest = max(peaks, key=lambda stage: peaks[stage])
    context = costs.model.context_length
    return Memory(
        weights={stage: precisions[stage].weight_bytes(costs.stages[stage]) for stage in costs.stages},
        mapped=precisions["llm"].second_copy_bytes(costs.stages["llm"], costs.model.vocab_size),
        kv_row=costs.kv_elements() * precisions["llm"].rest,
        rows_needed=needed,
        rows_held=min(needed, context) if device.kind == "cpu" else context,
        context_length=context,
        features=costs.image_features * precisions["pixel_encoder"].rest,
        activations=peaks[largest],
        largest_stage=largest,
        overhead=round(efficiency.overhead_gib * GIB),
        usable=round((device.memory_gib - efficiency.reserve_gib) * GIB),
    )
