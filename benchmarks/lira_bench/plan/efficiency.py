"""The share of a device's figures that work reaches, per kind of device, and other assumptions.

Only those of the CPU are measured: fitted to LIRA-2B in int4 and int8 engines on two cores (docs/plan.md has
the table). Those of GPUs are assumptions, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from lira_bench.plan.device import Kind


@dataclass(frozen=True)
class Efficiency:
    """Shares and constants of a kind of device.

    Attributes:
        compute: share of the peak that matmuls reach. bandwidth: share of the memory's bandwidth.
        fused: whether the nodes between matmuls (sums, norms, activations) cost no memory traffic.
        launch: seconds per node with counted operations, on top of the work.
        preprocess: seconds to decode, cut and resize an image.
        overhead_gib: memory of process and libraries beside weights, cache and activations.
        reserve_gib: memory of the operating system, firmware and display.
    """

    compute: float
    bandwidth: float
    fused: bool
    launch: float
    preprocess: float
    overhead_gib: float
    reserve_gib: float
    basis: str


EFFICIENCY: dict[Kind, Efficiency] = {
    "cpu": Efficiency(
        compute=0.92,
        bandwidth=0.70,
        fused=False,
        launch=0.0,
        preprocess=0.08,
        overhead_gib=1.1,
        reserve_gib=1.0,
        basis="fitted to LIRA-2B measured on two cores",
    ),
    "jetson": Efficiency(
        compute=0.40,
        bandwidth=0.70,
        fused=True,
        launch=5e-6,
        preprocess=0.1,
        overhead_gib=1.0,
        reserve_gib=1.5,
        basis="ASSUMED, NOT measured",
    ),
    "rtx": Efficiency(
        compute=0.40,
        bandwidth=0.70,
        fused=True,
        launch=5e-6,
        preprocess=0.05,
        overhead_gib=0.6,
        reserve_gib=0.5,
        basis="ASSUMED, NOT measured",
    ),
}
