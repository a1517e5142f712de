"""How the weights of a quantized language model are stored."""

from __future__ import annotations

from dataclasses import dataclass

from lira_engine.engines.llm_tensors import LM_HEAD
from lira_engine.lowering.int4_blocks import WeightBits
from lira_engine.lowering.passes.quantize_matmul import Choice


@dataclass(frozen=True)
class Quantization:
    """Bits and block size of the language model's weights. Raises ValueError for those that do not exist.

    Attributes:
        block: inputs that share a scale.
        lm_head_bits: 4, or 8 as twice 4.
    """

    block: int = 32
    lm_head_bits: int = 4

    def __post_init__(self) -> None:
        WeightBits(self.lm_head_bits, self.block)

    def choice(self, bits: int) -> Choice:
        """Return the choice of `bits` for every weight; the LM head has at least `lm_head_bits`."""
        return lambda name: WeightBits(max(bits, self.lm_head_bits) if name == LM_HEAD else bits, self.block)
