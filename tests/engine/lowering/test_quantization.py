"""How the language model's weights are stored."""

from __future__ import annotations

from typing import Any

import pytest

from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.int4_blocks import WeightBits
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.quantization import Quantization


def test_the_lm_head_has_no_fewer_bits_than_asked(counts: Any, case: Any) -> None:
    choose = Quantization(block=128, lm_head_bits=8).choice(4)
    assert choose("layers.3.q") == WeightBits(4, 128) and choose("lm_head") == WeightBits(8, 128)
    assert Quantization().choice(8)("lm_head") == WeightBits(8, 32)
    lowered = apply(case.model(), [cpu_pipeline("llm", "int4")[0]])
    assert counts(lowered) == {"MatMulNBits": 1}


def test_other_bits_and_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 4 or 8 bits"):
        Quantization(lm_head_bits=3)
    with pytest.raises(ValueError, match="expected 4 or 8 bits"):
        Quantization(block=33)
