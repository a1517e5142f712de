"""The share of a device's figures that each class of work reaches, and other assumptions, by family.

Each share says where it comes from: measured here, fitted to published figures, or a guess. All have a range;
that of a guess is wide. `python -m lira_bench.plan.efficiency` prints the table of docs/plan.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lira_bench.plan.device import Family

Work = Literal[
    "int4 prefill",
    "int8 prefill",
    "float prefill",
    "prefill attention",
    "int8 vit",
    "float vit",
    "vit attention",
    "int8 pixel",
    "float pixel",
    "convolution",
]
"""Classes of operations. prefill: the language model's matmuls, in 4-bit (or other widened) weights, in 8-bit
weights and activations, in floats. vit: semantic encoder and SEFE. pixel: matmuls of the pixel stages.
convolution: theirs, depthwise ones and sampling included. Attention is never in 8 bits."""

Basis = Literal["measured", "published", "guess"]


@dataclass(frozen=True)
class Share:
    """A share of a peak, in its range. `source`: of a measured or published one; the reason of a guess."""

    value: float
    low: float
    high: float
    basis: Basis
    source: str

    def text(self) -> str:
        """Return such as "40 % (20 to 50), guess"."""
        return f"{self.value:.0%} ({self.low:.0%} to {self.high:.0%}), {self.basis}".replace("%", " %")


@dataclass(frozen=True)
class Efficiency:
    """Shares and constants of a family of devices.

    Attributes:
        compute: share of the peak, by class of work. bandwidth: of the memory's bandwidth.
        fused: whether the nodes between matmuls (sums, norms, activations) cost no memory traffic.
        launch: seconds per node with counted operations, on top of the work.
        preprocess: seconds to decode, cut and resize an image.
        overhead_gib: memory of process and libraries beside weights, cache and activations.
        reserve_gib: memory of the operating system, firmware and display.
    """

    compute: Mapping[Work, Share]
    bandwidth: Share
    fused: bool
    launch: float
    preprocess: float
    overhead_gib: float
    reserve_gib: float

    def bounded(self, bound: Literal["low", "high"]) -> Efficiency:
        """Return this with every share at the low or the high end of its range."""

        def end(share: Share) -> Share:
            return replace(share, value=getattr(share, bound))

        compute = {work: end(share) for work, share in self.compute.items()}
        return replace(self, compute=compute, bandwidth=end(self.bandwidth))

    def shares(self) -> dict[str, Share]:
        """Return all shares by class, that of the bandwidth first."""
        return {BYTES: self.bandwidth} | {str(work): share for work, share in self.compute.items()}


BYTES = "decode bytes"
"""The share of the bandwidth: a decode step reads every weight and the cache once."""

_DESIGN = "quiet cores, 2,101 rows and 7 tiles"
_E = "true-size.md, refseg and gcg"
_EDGE = "TensorRT Edge-LLM 0.9"
_NO_ROW = "no figure known"


def _measured(value: float, low: float, high: float, source: str) -> Share:
    return Share(value, low, high, "measured", source)


def _published(value: float, low: float, high: float, source: str) -> Share:
    return Share(value, low, high, "published", source)


def _guess(value: float, low: float, high: float, reason: str = _NO_ROW) -> Share:
    return Share(value, low, high, "guess", reason)


# int8 prefill: whole pass 13.9 s in int4, 6.35 s in per-channel int8, less attention and the rest.
_AVX512_VNNI: dict[Work, Share] = {
    "int4 prefill": _measured(0.96, 0.90, 1.0, f"{_DESIGN}: 83 % of 14.6 s"),
    "int8 prefill": _measured(0.72, 0.65, 0.80, "2,082 rows in 6.75 s, less attention"),
    "float prefill": _guess(0.90, 0.75, 1.0, "as large matmuls of the pixel encoder, which are smaller"),
    "prefill attention": _measured(0.54, 0.40, 0.65, "24 % of a profile of 512 rows after 1,024"),
    "int8 vit": _measured(0.75, 0.65, 0.85, f"{_DESIGN}: 60 % of 5.5 s"),
    "float vit": _guess(0.90, 0.75, 1.0, "as float prefill"),
    "vit attention": _measured(0.88, 0.75, 0.95, f"{_DESIGN}: 31 % of 5.5 s"),
    "int8 pixel": _measured(0.56, 0.45, 0.65, "1.79 times as fast as fp32, less what is not in 8 bits"),
    "float pixel": _measured(0.79, 0.70, 0.90, f"{_DESIGN}: 70 % of 6.2 s"),
    "convolution": _measured(0.25, 0.15, 0.40, "what is left of the pixel encoder's 6.2 s"),
}
_AVX2: dict[Work, Share] = {
    "int4 prefill": _measured(0.97, 0.90, 1.0, _E),
    "int8 prefill": _guess(0.93, 0.70, 1.0, "as int8 vit: the same kernel"),
    "float prefill": _guess(0.90, 0.75, 1.0, "as the int4 one, a little lower"),
    "prefill attention": _measured(0.85, 0.70, 0.95, f"{_E}: split from the matmuls by fit"),
    "int8 vit": _measured(0.93, 0.85, 1.0, _E),
    "float vit": _guess(0.90, 0.75, 1.0, "as float prefill"),
    "vit attention": _measured(0.93, 0.75, 1.0, f"{_E}: with the matmuls"),
    "int8 pixel": _guess(0.70, 0.50, 0.90, "lower than int8 vit, as on CPUs with AVX-512 VNNI"),
    "float pixel": _measured(0.85, 0.75, 0.95, f"{_E}: split from the convolutions by fit"),
    "convolution": _measured(0.45, 0.25, 0.70, f"{_E}: split from the matmuls by fit"),
}
_BETWEEN = "between the two measured CPUs"
_OTHER_CPU: dict[Work, Share] = {
    "int4 prefill": _guess(0.95, 0.80, 1.0, _BETWEEN),
    "int8 prefill": _guess(0.90, 0.60, 1.0, _BETWEEN),
    "float prefill": _guess(0.90, 0.75, 1.0, _BETWEEN),
    "prefill attention": _guess(0.60, 0.35, 0.95, _BETWEEN),
    "int8 vit": _guess(0.85, 0.60, 1.0, _BETWEEN),
    "float vit": _guess(0.90, 0.75, 1.0, _BETWEEN),
    "vit attention": _guess(0.90, 0.70, 1.0, _BETWEEN),
    "int8 pixel": _guess(0.60, 0.40, 0.90, _BETWEEN),
    "float pixel": _guess(0.80, 0.65, 0.95, _BETWEEN),
    "convolution": _guess(0.35, 0.15, 0.70, _BETWEEN),
}
# On NVIDIA GPUs an 8-bit ViT may take twice the time of the fp16 one (ViT-L on a T4: 132 for 66 ms). The
# guess is that it takes as long: half of the fp16 share where the 8-bit peak is twice as high, a quarter
# where it is four times as high (RTX, whose fp16 peak is that with fp32 sums).
_INT8_VIT = "as fast as fp16; low: half as fast, as ViT-L on a T4"
_ORIN: dict[Work, Share] = {
    "int4 prefill": _published(0.44, 0.38, 0.49, f"{_EDGE}: Qwen3-VL-4B and 8B, 292 rows"),
    "int8 prefill": _guess(0.40, 0.20, 0.50, "as int4 prefill, of twice the peak"),
    "float prefill": _guess(0.46, 0.38, 0.60, "int4 prefill, without widening"),
    "prefill attention": _published(0.44, 0.38, 0.49, "in the int4 prefill's figure"),
    "int8 vit": _guess(0.24, 0.12, 0.48, _INT8_VIT),
    "float vit": _published(0.48, 0.44, 0.55, f"{_EDGE}: Qwen3-VL-8B's ViT"),
    "vit attention": _published(0.48, 0.44, 0.55, "in the ViT's figure"),
    "int8 pixel": _guess(0.20, 0.10, 0.50, "as fast as fp16"),
    "float pixel": _guess(0.40, 0.20, 0.50, "lower than a ViT: small matmuls"),
    "convolution": _guess(0.20, 0.05, 0.40, "depthwise convolutions and gathers"),
}
_THOR: dict[Work, Share] = {
    "int4 prefill": _published(0.10, 0.08, 0.11, f"{_EDGE}: Qwen3-VL-4B and 8B, 292 rows"),
    "int8 prefill": _guess(0.15, 0.08, 0.30, "between int4 prefill and a ViT"),
    "float prefill": _guess(0.25, 0.15, 0.40, "as a ViT"),
    "prefill attention": _published(0.10, 0.08, 0.11, "in the int4 prefill's figure"),
    "int8 vit": _guess(0.14, 0.07, 0.28, _INT8_VIT),
    "float vit": _published(0.28, 0.16, 0.30, f"{_EDGE}: Qwen3-VL-8B's ViT; low: Edge-LLM 0.4"),
    "vit attention": _published(0.28, 0.16, 0.30, "in the ViT's figure"),
    "int8 pixel": _guess(0.10, 0.05, 0.25, "as fast as fp16"),
    "float pixel": _guess(0.20, 0.10, 0.30, "lower than a ViT: small matmuls"),
    "convolution": _guess(0.10, 0.02, 0.25, "depthwise convolutions and gathers"),
}
_RTX: dict[Work, Share] = {
    "int4 prefill": _guess(0.40, 0.10, 0.60, "Orin's 44 %, Thor's 10 %"),
    "int8 prefill": _guess(0.40, 0.15, 0.60),
    "float prefill": _guess(0.45, 0.25, 0.70),
    "prefill attention": _guess(0.40, 0.20, 0.60),
    "int8 vit": _guess(0.11, 0.055, 0.50, _INT8_VIT),
    "float vit": _guess(0.45, 0.25, 0.60, "Orin's 48 %, Thor's 28 %"),
    "vit attention": _guess(0.45, 0.25, 0.60, "as float vit"),
    "int8 pixel": _guess(0.09, 0.04, 0.50, "as fast as fp16"),
    "float pixel": _guess(0.35, 0.15, 0.50, "lower than a ViT: small matmuls"),
    "convolution": _guess(0.15, 0.03, 0.40, "depthwise convolutions and gathers"),
}


def _cpu(compute: dict[Work, Share], bandwidth: Share) -> Efficiency:
    return Efficiency(
        compute, bandwidth, fused=False, launch=0.0, preprocess=0.08, overhead_gib=1.1, reserve_gib=1.0
    )


EFFICIENCY: dict[Family, Efficiency] = {
    "cpu-avx512-vnni": _cpu(_AVX512_VNNI, _measured(0.75, 0.70, 0.80, "32.7 ms a step, quiet cores")),
    "cpu-avx2": _cpu(_AVX2, _measured(0.72, 0.67, 0.77, _E)),
    "cpu-other": _cpu(_OTHER_CPU, _guess(0.72, 0.60, 0.80, _BETWEEN)),
    "orin": Efficiency(
        _ORIN,
        _published(0.87, 0.79, 0.96, f"{_EDGE}: Qwen3 0.6B, 4B, 8B"),
        fused=True,
        launch=12e-6,
        preprocess=0.1,
        overhead_gib=1.0,
        reserve_gib=1.5,
    ),
    "thor": Efficiency(
        _THOR,
        _published(0.96, 0.85, 0.98, f"{_EDGE} and 0.4: Qwen3 0.6B, 4B, 8B"),
        fused=True,
        launch=7e-6,
        preprocess=0.1,
        overhead_gib=1.0,
        reserve_gib=1.5,
    ),
    "rtx": Efficiency(
        _RTX,
        _guess(0.80, 0.60, 0.95, "below Orin's and Thor's: shorter reads"),
        fused=True,
        launch=5e-6,
        preprocess=0.05,
        overhead_gib=0.6,
        reserve_gib=0.5,
    ),
}


def table() -> str:
    """Return the shares of all families as a Markdown table."""
    lines = ["| family | work | share | range | basis | source |", "| --- | --- | ---: | ---: | --- | --- |"]
    for family, one in EFFICIENCY.items():
        for work, share in one.shares().items():
            bounds = f"{share.low:.0%} to {share.high:.0%}".replace("%", " %")
            value = f"{share.value:.0%}".replace("%", " %")
            basis = f"**{share.basis}**" if share.basis == "guess" else share.basis
            lines.append(f"| {family} | {work} | {value} | {bounds} | {basis} | {share.source} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
