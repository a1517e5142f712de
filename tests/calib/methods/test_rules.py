"""Blocks, weights that stay floats, and forms to try, by the names of the portable graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_calib.methods.rules import (
    Template,
    Unit,
    block,
    keep_float,
    kept_floats,
    range_method,
    units,
)
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.recipe import Form
from lira_engine.lowering.weights import constant_matmuls

FFN = "pixel_decoder.decoder.encoder.layers.0.ffn"
BLOCKS = {
    "layers.3.q": "layers.3.attention",
    "layers.23.o": "layers.23.attention",
    "layers.3.gate": "layers.3.mlp",
    "layers.3.down": "layers.3.mlp",
    "lm_head": "lm_head",
    "vit.encoder.layers.0.attn.qkv.weight": "vit.encoder.layers.0.attn",
    "vit.encoder.layers.23.mlp.fc2.weight": "vit.encoder.layers.23.mlp",
    "mlp1.3.weight": "mlp1",
    "backbone.layer3.blocks.26.mlp.fc1.weight": "backbone.layer3.blocks.26.mlp",
    "pixel_decoder.attention.5.attention.value_proj.weight": "pixel_decoder.attention.5.attention",
    f"{FFN}.layers.0.0.weight": FFN,
    f"{FFN}.layers.1.weight": FFN,
    "queries.layers.8.cross_attn.out.weight": "queries.layers.8.cross_attn",
    "queries.layers.8.ffn.layers.1.weight": "queries.layers.8.ffn",
    "queries.mask_embed.2.weight": "queries.mask_embed",
    "model_feat.0.weight": "model_feat",
    "query_proj.weight": "query_proj",
    "attention.out.weight": "attention",
}


@pytest.mark.parametrize("weight", BLOCKS)
def test_a_weight_belongs_to_its_block(weight: str) -> None:
    assert block(weight) == BLOCKS[weight]


@pytest.mark.parametrize(
    "stage, weight, why",
    [
        ("pixel_encoder", "pixel_decoder.attention.0.attention.sampling_offsets.weight", "sampling offsets"),
        ("pixel_encoder", "pixel_decoder.attention.0.attention.attention_weights.weight", "sampled points"),
        ("pixel_encoder", "queries.mask_embed.4.weight", "every mask feature"),
        ("pixel_encoder", "score.cls_proj.2.weight", "scores of classes"),
        ("pixel_encoder", "score.class_embed", "class embeddings"),
        ("pixel_encoder", "permute_18", "a table"),
        ("pixel_encoder", "queries.query_pos", "a table"),
        ("pixel_decoder", "code_y_2", "codes of positions"),
        ("llm", "layers.0.rotary", "a table"),
    ],
)
def test_what_is_known_to_hurt_stays_a_float_with_its_reason(stage: str, weight: str, why: str) -> None:
    reason = keep_float(stage, weight)
    assert reason is not None and why in reason


@pytest.mark.parametrize(
    "stage, weight",
    [
        ("semantic_encoder", "vit.encoder.layers.0.attn.qkv.weight"),
        ("pixel_encoder", "backbone.layer1.blocks.0.mlp.fc1.weight"),
        ("pixel_encoder", "pixel_decoder.attention.0.attention.output_proj.weight"),
        ("pixel_encoder", "queries.mask_embed.0.weight"),
        ("sefe", "attention.k.weight"),
        ("llm", "layers.0.down"),
        ("llm", "lm_head"),
    ],
)
def test_other_weights_may_be_rounded(stage: str, weight: str) -> None:
    assert keep_float(stage, weight) is None


def model(*weights: str) -> ir.Model:
    """Return a chain of matmuls with these weights."""
    rest = [f"float[4,4] w{i}" for i in range(len(weights))]
    nodes = " ".join(f"y{i} = MatMul({'x' if i == 0 else f'y{i - 1}'}, w{i})" for i in range(len(weights)))
    header = '<ir_version: 10, opset_import: ["" : 23]>'
    text = f"{header} g (float[1,4] x, {', '.join(rest)}) => (float[1,4] y{len(weights) - 1}) {{ {nodes} }}"
    tensors = [ir.tensor(np.zeros((4, 4), np.float32), name=f"w{i}") for i in range(len(weights))]
    found = ir.from_onnx_text(text, initializers=tensors)
    del found.graph.inputs[1:]
    for i, name in enumerate(weights):
        value = found.graph.initializers[f"w{i}"]
        value.name = name
    return found


def test_units_are_blocks_in_order_without_what_stays_a_float() -> None:
    names = (
        "queries.layers.0.self_attn.q.weight",
        "queries.mask_embed.0.weight",
        "queries.mask_embed.4.weight",
        "permute_3",
        "queries.layers.0.self_attn.out.weight",
    )
    graph = model(*names)
    assert units(graph, "pixel_encoder") == [
        Unit("pixel_encoder", "queries.layers.0.self_attn", (names[0], names[4])),
        Unit("pixel_encoder", "queries.mask_embed", (names[1],)),
    ]
    assert list(kept_floats(graph, "pixel_encoder")) == ["queries.mask_embed.4.weight", "permute_3"]


def test_every_weight_of_real_graphs_has_a_block_or_a_reason(nano_bundle: Path) -> None:
    bundle = Bundle.open(nano_bundle)
    counts = {}
    for stage in STAGES:
        graph = ir.load(bundle.stage_file(stage))
        found, floats = units(graph, stage), kept_floats(graph, stage)
        named = [weight for unit in found for weight in unit.weights]
        assert sorted([*named, *floats]) == sorted({one.name for one in constant_matmuls(graph.graph)})
        counts[stage] = (len(found), len(named), len(floats))
        assert len({unit.name for unit in found}) == len(found)
    assert counts == {
        "semantic_encoder": (9, 18, 0),
        "pixel_encoder": (19, 49, 11),
        "sefe": (4, 9, 0),
        "llm": (9, 29, 0),
        "pixel_decoder": (0, 0, 3),
    }


def test_a_template_takes_a_range_where_its_kind_needs_one() -> None:
    assert Template("w8a8", dynamic=True).form((-1, 2)) == Form("w8a8", range=(-1, 2), dynamic=True)
    assert Template("int4", 64).form((-1, 2)) == Form("int4", 64)
    assert [Template("int4", 64).text(), Template("w8a8", dynamic=True).text()] == ["int4/64", "w8a8 dynamic"]


@pytest.mark.parametrize(
    "stage, weight, method",
    [
        ("pixel_encoder", "queries.layers.2.cross_attn.k.weight", "percentile"),
        ("pixel_encoder", "queries.layers.2.self_attn.q.weight", "percentile"),
        ("pixel_encoder", "queries.layers.2.cross_attn.v.weight", None),
        ("sefe", "attention.q.weight", None),
        ("pixel_encoder", "backbone.layer3.blocks.26.mlp.fc2.weight", "minmax"),
        ("pixel_encoder", "backbone.layer3.blocks.26.mlp.fc1.weight", None),
        ("semantic_encoder", "vit.encoder.layers.0.mlp.fc2.weight", "minmax"),
        ("semantic_encoder", "mlp1.3.weight", "minmax"),
        ("semantic_encoder", "mlp1.1.weight", None),
        ("sefe", "model_feat.2.weight", "minmax"),
        ("sefe", "model.2.weight", "minmax"),
        ("sefe", "model.0.weight", None),
        ("llm", "layers.0.down", None),
    ],
)
def test_ranges_by_name(stage: str, weight: str, method: str | None) -> None:
    assert range_method(stage, weight) == method
