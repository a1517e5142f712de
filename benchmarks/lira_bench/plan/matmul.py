"""Predict the time of one matmul, for the search of `lira-edge calibrate`."""

from __future__ import annotations

from lira_bench.plan.device import Device
from lira_bench.plan.efficiency import EFFICIENCY
from lira_bench.plan.graph_costs import Matrix
from lira_bench.plan.precision import MANY_ROWS, Form, in_copy, matrix_bytes, peak, work_of_matmul


def matmul_seconds(device: Device, stage: str, one: Matrix, rows: int, kind: str, block: int = 0) -> float:
    """Return the seconds of `rows` rows by a weight [inputs, outputs] of a stage: the larger of operations
    over the peak and bytes over the bandwidth, each with its share.

    Args:
        kind: "float", or that of a recipe's form: int4, int8, w8a8, fp8. block: inputs that share a scale.
    """
    cpu = device.kind == "cpu"
    rest = 4 if cpu else 2
    share = EFFICIENCY[device.family]
    form = _form(kind, cpu)
    if cpu and stage == "llm" and rows >= MANY_ROWS:
        form, block = in_copy(form), 0
    reached = peak(form, device) * 1e12 * share.compute[work_of_matmul(stage, form)].value
    compute = 2 * rows * one.inputs * one.outputs / reached
    moved = matrix_bytes(form, block, rest, one) + rest * rows * (one.inputs + one.outputs)
    return share.launch + max(compute, moved / (device.bandwidth * 1e9 * share.bandwidth.value))


def _form(kind: str, cpu: bool) -> Form:
    forms: dict[str, Form] = {
        "float": "fp32" if cpu else "fp16",
        "int4": "int4",
        "int8": "2xint4" if cpu else "int8",
        "w8a8": "w8a8",
        "fp8": "fp8",
    }
    return forms[kind]
