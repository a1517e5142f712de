"""KV caches in 8 bits; test_int8_cache.py compares results."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from lira_engine.errors import LiraError
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.passes.quantize_kv_cache import QuantizeKvCache
from lira_engine.lowering.pipeline import apply


def test_caches_become_integers_with_a_scale_for_each_channel(small_llm: Any, assert_unchanged: Any) -> None:
    model = apply(small_llm(), cpu_pipeline("llm"))
    with pytest.raises(ir.passes.PostconditionError, match="has a float cache"):
        QuantizeKvCache().ensures(model)
    assert QuantizeKvCache()(model).modified
    inputs = {value.name: value for value in model.graph.inputs}
    for kind, i in (("key", 12), ("value", 13)):
        for layer, node in enumerate(n for n in model.graph if n.op_type == "GroupQueryAttention"):
            scales = node.inputs[i]
            assert scales is inputs[f"{kind}_scales.{layer}"]
            assert (scales.dtype, scales.shape) == (ir.DataType.FLOAT, [3 * 16])
            assert node.attributes["kv_cache_bit_width"].as_int() == 8
            assert node.attributes[f"{kind[0]}_quant_type"].as_string() == "PER_CHANNEL"
    caches = [v for v in (*model.graph.inputs, *model.graph.outputs) if "_cache" in str(v.name)]
    assert len(caches) == 8 and {value.dtype for value in caches} == {ir.DataType.INT8}
    assert_unchanged(QuantizeKvCache(), model)


def test_heads_without_the_operator_are_refused(small_llm: Any) -> None:
    model = apply(small_llm(head_size=8), cpu_pipeline("llm"))
    expected = r"heads have 8 columns, expected a multiple of 16; leave out --kv-cache int8"
    with pytest.raises(LiraError, match=expected):
        apply(model, [QuantizeKvCache()])
