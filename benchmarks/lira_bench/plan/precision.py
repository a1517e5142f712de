"""How an engine of a precision stores and computes a stage: bytes of the weights, peak of the work."""

from __future__ import annotations

from dataclasses import dataclass

from lira_bench.plan.device import Device, Kind
from lira_bench.plan.graph_costs import StageCosts
from lira_engine.errors import LiraError
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import SMALLEST
from lira_engine.targets import TARGETS

GPU_PRECISIONS = ("fp32", "fp16", "int8", "int4")
BLOCKS = (32, 128)
# As in the measured build of LIRA-2B (`lira-edge build` tries int8 and keeps it if it is faster).
_INT8_ON_CPU = ("semantic_encoder", "sefe")


@dataclass(frozen=True)
class StagePrecision:
    """One stage in an engine.

    Attributes:
        matrices: type of the weights of linear layers: fp32, fp16, int8, int4, or 2xint4 (eight bits as twice
            four, in CPU engines).
        rest: bytes of every other parameter and of an intermediate value.
        block: inputs that share a scale; 0 for a scale per output.
    """

    matrices: str
    rest: int
    block: int

    def weight_bytes(self, costs: StageCosts) -> int:
        total = costs.other_parameters * self.rest
        for matrix in costs.matrices:
            size = self._matrix_bytes(matrix.inputs, matrix.outputs)
            total += size * matrix.count
        return total

    def _matrix_bytes(self, inputs: int, outputs: int) -> int:
        elements = inputs * outputs
        if self.matrices in ("fp32", "fp16"):
            return elements * (4 if self.matrices == "fp32" else 2)
        if self.block == 0:
            if min(inputs, outputs) < SMALLEST:
                return elements * self.rest
            return elements + outputs * self.rest
        blocks = outputs * -(-inputs // self.block)  # the last one is padded
        if self.matrices == "int8":
            return blocks * (self.block + self.rest)
        four = blocks * (self.block // 2 + self.rest)
        return 2 * four if self.matrices == "2xint4" else four

    def seconds_at_peak(self, flops: dict[str, float], device: Device) -> float:
        """Return the seconds of operations by kind, all at the device's peak."""
        rest = device.fp32 if self.rest == 4 else device.fp16
        linear = {
            "fp32": device.fp32,
            "fp16": device.fp16,
            "int8": device.int8,
            "int4": device.int4 or device.fp16,
            "2xint4": (device.int4 or device.fp16) / 2,
        }[self.matrices]
        return sum(
            count / ((linear if kind == "linear" else rest) * 1e12) for kind, count in flops.items() if count
        )


def choices(kind: Kind) -> tuple[str, ...]:
    """Return the precisions of engines for a kind of device."""
    return TARGETS["cpu"].precisions if kind == "cpu" else GPU_PRECISIONS


def check_precision(precision: str, kind: Kind, name: str) -> None:
    """Raise LiraError with the choices for a precision that a device does not have."""
    if precision not in choices(kind):
        found = ", ".join(choices(kind))
        raise LiraError(f"precision {precision!r} is not one that {name} has; expected {found}")


def stage_precision(stage: str, precision: str, device: Device, block: int | None = None) -> StagePrecision:
    """Return how a build of `precision` stores a stage; `block` None means 32 on CPUs and 128 on GPUs.

    In int8 and int4 builds for CPUs the semantic encoder and SEFE are int8, the pixel stages fp32. In those
    for GPUs all stages but the language model are fp16, and the language model computes in fp16. Raises
    LiraError with the choices for another precision or block.
    """
    check_precision(precision, device.kind, device.name)
    cpu = device.kind == "cpu"
    block = block if block is not None else (32 if cpu else 128)
    if block not in BLOCKS:
        raise LiraError(f"block size {block}; expected 32 or 128")
    if precision in ("fp32", "fp16"):
        return StagePrecision(precision, 4 if precision == "fp32" else 2, 0)
    if stage == "llm":
        if cpu:
            return StagePrecision("2xint4" if precision == "int8" else "int4", 4, block)
        return StagePrecision(precision, 2, block)
    if cpu:
        return StagePrecision("int8" if stage in _INT8_ON_CPU else "fp32", 4, 0)
    return StagePrecision("fp16", 2, 0)
