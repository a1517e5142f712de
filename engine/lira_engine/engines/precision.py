"""The table of precisions: bits of the weights, and tolerances of the outputs.

To add a precision, add it here, to the lowering of each target that takes it (lira_engine.lowering), and to
the `precisions` of these targets.
"""

from __future__ import annotations

from dataclasses import dataclass

from lira_engine.errors import LiraError


@dataclass(frozen=True)
class Precision:
    """One precision of weights and arithmetic.

    Attributes:
        tolerance: largest accepted error of an output: for fp32 the largest deviation relative to the largest
            value, for the others the root mean square of the deviation relative to that of the output.
        disk_share: bytes of an engine per byte of the portable graph, whose weights are mostly fp16.
        weight_bits: bits of the language model's weights if only these are quantized; None if all stages
            have this precision.
        flipped: largest accepted share of wrong elements in an output of booleans or integers.
        judged: masks and tokens decide about the engines (engines.judgement): outputs must be finite only.
    """

    name: str
    tolerance: float
    disk_share: float
    weight_bits: int | None = None
    flipped: float = 0.0
    judged: bool = False

    @property
    def quantized(self) -> bool:
        """Whether the language model's weights are quantized."""
        return self.weight_bits is not None


# Why these tolerances.
#
# fp32: another order of summation changes an output by about 1e-6 of its largest value per layer; a wrong
# axis, a lost bias or an attention mask off by one changes it by more than 1e-2.
#
# fp16: each operand is rounded by 0.03 %. lira-nano's stages are off by up to 0.02 %, LIRA-2B's by 0.06 %
# with sums in fp32 (docs/true-size.md), more with sums in fp16. A kernel that is wrong at some positions is
# off by more than 2 %. Comparisons of sums decide which query owns a cell: fp16 flips near ties.
#
# int8, int4: weights in 8 (4) bits change each matmul by 0.6 % (9 %), which adds up over the layers. Weights
# that are packed, scaled or ordered wrongly cause an error of 100 % and more.
#
# mixed: a recipe may round activations, too. How far that moves an output says little about the masks: a
# judge looks at these, on scenes that the recipe's calibration did not see.
MIXED = "mixed"
"""Of engines that were built with a recipe; of a stage, that the recipe changes it."""
PRECISIONS = {
    one.name: one
    for one in (
        Precision("fp32", tolerance=1e-4, disk_share=2.2),
        Precision("fp16", tolerance=0.02, disk_share=1.1, flipped=0.02),
        Precision("int8", tolerance=0.15, disk_share=0.7, weight_bits=8),
        Precision("int4", tolerance=0.6, disk_share=0.5, weight_bits=4),
        Precision(MIXED, tolerance=float("inf"), disk_share=1.0, flipped=1.0, judged=True),
    )
}


def precision_named(name: str) -> Precision:
    """Return a precision of the table. Raises LiraError if it is not there."""
    if name not in PRECISIONS:
        raise LiraError(f"there is no precision {name!r}; expected {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
