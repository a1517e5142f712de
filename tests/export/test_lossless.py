"""Each shortcut of the exported graphs against the straightforward formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lira_engine.ort.session import open_session
from lira_export.checkpoint import Checkpoint
from lira_export.config import PixelConfig
from lira_export.graphs import vision
from lira_export.graphs.masks import (
    CellProbabilities,
    allowed_positions,
    bilinear_taps,
    resized_mask_features,
)
from lira_export.graphs.pixel_encoder import ClassScore, PixelEncoderStage, memory_sizes
from lira_export.graphs.sefe import SefeStage
from lira_export.graphs.seg_mask import PixelDecoderStage
from lira_export.graphs.trace import trace
from lira_export.model.lira import Lira
from lira_export.model.projector import cell_queries

ROUNDING = 4e-6  # of sums in another order; logits here are below 100
LOGITS = 1e-3  # the golden README's tolerance
UNDECIDED = 1e-4  # below it the sign of a logit is rounding
MakeLira = Callable[..., Lira]


def close(found: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    ("before", "after"), [(64, 16), (64, 2), (96, 3), (16, 64), (10, 7), (7, 10), (1, 5), (5, 1)]
)
def test_bilinear_taps_equal_those_of_interpolate(before: int, after: int) -> None:
    line = torch.randn(before)
    low, high, weight = bilinear_taps(torch.arange(after), before / after, before)
    expected = resize(line[None, None, None], (1, after)).flatten()
    close(line[low] * (1 - weight) + line[high] * weight, expected)


# 1: probabilities on the cell grid, from mask features at the points that the grid reads


@pytest.mark.parametrize(("image_size", "shuffle"), [(64, 2), (64, 1), (96, 1), (192, 2), (320, 2), (160, 5)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])  # the last one saturates the sigmoid
def test_cell_probabilities_equal_the_reference(image_size: int, shuffle: int, scale: float) -> None:
    torch.manual_seed(1)
    config = PixelConfig(image_size=image_size, cell_shuffle=shuffle, feat_channels=8)
    queries, side = 6, image_size // 4
    embedding, features = torch.randn(1, queries, 8) * scale, torch.randn(1, 8, side, side)
    embedding[0, 0] = 0  # probability one half everywhere
    classes = torch.randn(1, queries, 4)
    score = classes.softmax(-1)[..., :-1].amax(-1)
    masks = torch.einsum("bqc,bchw->bqhw", embedding, features)
    queries_of_image = torch.randn(1, queries, 16)
    _, valid, expected = cell_queries(classes, masks, queries_of_image, image_size, config.grid)
    found = CellProbabilities(config)(embedding, features, score)
    close(found, expected)
    assert found.shape[2] == found.shape[3] == config.grid
    owners = torch.zeros(queries, dtype=torch.bool).index_fill(0, found.flatten(2).argmax(1).unique(), True)
    assert torch.equal(owners, valid[0])


# 2: attention masks between layers, from mask features resized once


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_attention_masks_from_resized_features_equal_the_reference(make_lira: MakeLira, scale: float) -> None:
    decoder = make_lira().pixel_encoder.mask_decoder
    dim, sizes = decoder.config.feat_channels, memory_sizes(decoder.config)
    features = torch.randn(1, dim, 16, 16).abs()
    embedding = torch.randn(1, 7, dim) * scale
    embedding[0, 0], embedding[0, 1] = 1, -1  # positive everywhere, negative everywhere
    masks = torch.einsum("bqc,bchw->bqhw", embedding, features)
    for size, small in zip(sizes, resized_mask_features(features, sizes), strict=True):
        close(torch.einsum("bqc,bchw->bqhw", embedding, small), resize(masks, size))
        blocked = decoder.blocked(masks, size)[:: decoder.heads].reshape(1, 7, -1)
        allowed = allowed_positions(embedding, small)
        assert torch.equal(allowed, ~blocked)
        assert allowed[0, :2].all() and not allowed.all()


# 3: class scores once, after the last layer


def test_class_score_equals_the_reference(make_lira: MakeLira) -> None:
    decoder = make_lira().pixel_encoder.mask_decoder
    dim = decoder.config.feat_channels
    features, feat = torch.randn(1, dim, 16, 16), torch.randn(1, 7, dim) * 5
    normed = decoder.transformer_decoder.post_norm(feat)
    embedding = decoder.mask_embedding(feat)
    embedding[0, 0] = 0  # an empty mask has nothing to pool
    masks = torch.einsum("bqc,bchw->bqhw", embedding, features)
    expected = decoder.class_logits(feat, masks, features).softmax(-1)[..., :-1].amax(-1)
    close(ClassScore(decoder)(normed, embedding, features), expected)


def test_class_score_of_an_empty_mask_survives_graph_optimizers(make_lira: MakeLira, tmp_path: Path) -> None:
    """Graph optimizers take the 1e-8 in upstream's formula for zero: an empty mask becomes 0 / 0."""
    decoder = make_lira().pixel_encoder.mask_decoder
    dim = decoder.config.feat_channels
    features, feat = torch.randn(1, dim, 16, 16), torch.randn(1, 7, dim)
    normed, embedding = decoder.transformer_decoder.post_norm(feat), decoder.mask_embedding(feat)
    embedding[0, :3] = 0
    inputs = {"normed": normed, "mask_embedding": embedding, "mask_features": features}
    module = ClassScore(decoder)
    ir.save(trace("score", module, inputs, ["score"]), tmp_path / "score.onnx")
    session = open_session(tmp_path / "score.onnx", threads=1)
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    close(torch.from_numpy(found), module(**inputs))


@pytest.mark.parametrize("sizes", [{}, {"image_size": 96, "shuffle": 1, "queries": 9, "decoder_layers": 5}])
def test_pixel_encoder_equals_the_reference(make_lira: MakeLira, sizes: dict[str, int]) -> None:
    encoder = make_lira(**sizes).pixel_encoder
    pixels = torch.randn(1, 3, encoder.config.image_size, encoder.config.image_size)
    expected = encoder(pixels)
    cells, queries, valid, mask_features, *levels = PixelEncoderStage(encoder)(pixels)
    close(cells, expected.pixel_features)
    close(queries, expected.queries)
    assert torch.equal(valid, expected.query_valid) and valid.any()
    close(mask_features, expected.mask_features)
    for found, memory in zip(levels[3:], expected.memories, strict=True):
        close(found, memory)
    signs = expected.mask_logits > 0
    assert signs.any() and not signs.all()


# 4: one [SEG] query against memories that are not projected


@pytest.mark.parametrize("sizes", [{}, {"image_size": 96, "shuffle": 1, "decoder_layers": 5, "width": 24}])
def test_pixel_decoder_equals_the_reference(make_lira: MakeLira, sizes: dict[str, int]) -> None:
    model = make_lira(**sizes)
    encoder = model.pixel_encoder
    image = encoder(torch.randn(1, 3, encoder.config.image_size, encoder.config.image_size))
    attention = resized_mask_features(image.mask_features, memory_sizes(encoder.config))
    stage = PixelDecoderStage(model.text2vision, encoder.mask_decoder)
    hidden = torch.randn(6, model.config.llm.hidden_size) * torch.logspace(-1, 1, 6)[:, None]
    expected = model.decode_masks(hidden, image.mask_features, image.memories)[-1]
    for row, mask in zip(hidden, expected, strict=True):
        close(stage(row[None], image.mask_features, attention, image.memories)[0], mask)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_pixel_decoder_equals_the_reference_if_all_or_no_positions_are_blocked(
    make_lira: MakeLira, sign: float
) -> None:
    model = make_lira()
    decoder = model.pixel_encoder.mask_decoder
    last = decoder.mask_embed[-1]
    last.weight.zero_()
    last.bias.fill_(sign)
    features = torch.rand(1, decoder.config.feat_channels, 16, 16) + 0.1
    sizes = memory_sizes(decoder.config)
    memories = [torch.randn(1, decoder.config.feat_channels, *size) for size in sizes]
    hidden = torch.randn(1, model.config.llm.hidden_size)
    expected = model.decode_masks(hidden, features, memories)[-1]
    assert ((expected > 0) == (sign > 0)).all()
    stage = PixelDecoderStage(model.text2vision, decoder)
    found = stage(hidden, features, resized_mask_features(features, sizes), memories)
    assert found.isfinite().all()
    close(found, expected)


def test_golden_seg_queries_are_decoded(golden: Path, golden_checkpoint: Checkpoint) -> None:
    """The recorded queries, one of which begins with a mask that is negative everywhere."""
    model = golden_checkpoint.load_model()
    sizes = memory_sizes(model.config.pixel)
    stage = PixelDecoderStage(model.text2vision, model.pixel_encoder.mask_decoder)
    with np.load(golden / "components/llm_seg.npz") as data:
        masks = {name: torch.from_numpy(data[name]) for name in data.files}
    with np.load(golden / "components/pixel_decoder.npz") as data:
        decoded = {name: torch.from_numpy(data[name]) for name in data.files}
    for batch in ("AB", "C"):
        for i, image in enumerate(masks[f"batch_idx_{batch}"].tolist()):
            features = decoded[f"mask_features_{batch}"][image][None]
            memories = [decoded[f"memory{level}_{batch}"][image][None] for level in range(len(sizes))]
            query = masks[f"query_{batch}"][i][None]
            found = stage.decode(query, features, resized_mask_features(features, sizes), memories)
            expected = masks[f"mask_logits_all_layers_{batch}"][-1, i]
            torch.testing.assert_close(found, expected, rtol=0, atol=LOGITS)
            decided = expected.abs() > UNDECIDED
            assert torch.equal((found > 0)[decided], (expected > 0)[decided])


def test_sefe_in_one_attention_equals_the_reference(make_lira: MakeLira) -> None:
    model = make_lira()
    c, width = model.config.pixel, model.config.llm.hidden_size
    features = torch.randn(1, 11, width)
    cells = torch.randn(1, c.grid**2, c.shuffled_channels + 2 * c.feat_channels)
    queries = torch.randn(1, c.num_queries, 2 * c.feat_channels)
    found, expected = (
        SefeStage(model.projector)(features, cells, queries),
        model.projector(features, cells, queries),
    )
    for tokens, reference in zip(found, expected, strict=True):
        close(tokens, reference)


# What the graphs must not hold


def values(model: ir.Model) -> list[ir.Value]:
    assert all(value.shape is not None for node in model.graph for value in node.outputs)
    return [value for node in model.graph for value in node.outputs]


def elements(value: ir.Value) -> int:
    assert value.shape is not None
    return math.prod(int(size) for size in value.shape)


def test_pixel_encoder_graph_holds_no_mask_of_the_image(make_lira: MakeLira) -> None:
    # More queries than any other dimension: only masks make a tensor that large.
    model = make_lira(image_size=64, queries=300, shuffle=1)
    config = model.config.pixel
    graph = vision.pixel_encoder(model.pixel_encoder, model.config)
    at_image_size = config.num_queries * config.image_size**2
    at_stride_4 = at_image_size // 16
    assert max(map(elements, values(graph))) <= max(at_stride_4, 300 * 300 * config.decoder_heads)
    masks = [
        value
        for value in values(graph)
        if elements(value) == at_stride_4 and value.producer().op_type == "MatMul"  # type: ignore[union-attr]
    ]
    assert len(masks) == 1  # for the class scores, after the last layer
    classes = [node for node in graph.graph if node.op_type == "ReduceL2"]
    assert len(classes) == 1


def test_pixel_decoder_graph_projects_no_memory(make_lira: MakeLira) -> None:
    model = make_lira(image_size=192)
    decoder = model.pixel_encoder.mask_decoder
    graph = vision.pixel_decoder(model.text2vision, decoder, model.config)
    positions = min(h * w for h, w in memory_sizes(decoder.config))
    for node in graph.graph:  # no weight is multiplied with as many rows as there are positions
        weighted = any(value is not None and value.const_value is not None for value in node.inputs)
        if node.op_type in ("MatMul", "Gemm") and weighted:
            shape = node.outputs[0].shape
            assert shape is not None and math.prod(int(size) for size in shape[:-1]) < positions, node.name
    # A mask at stride 4 is made once, after the last layer: the matmul, and its reshape.
    side = decoder.config.image_size // 4
    shapes = [[int(size) for size in value.shape or ()] for value in values(graph)]
    assert [shape for shape in shapes if shape in ([1, side * side], [1, side, side])] == [
        [1, side * side],
        [1, side, side],
    ]


def test_a_grid_of_another_size_changes_constants_only() -> None:
    config = PixelConfig(image_size=64, cell_shuffle=1)
    modules = [CellProbabilities(config), CellProbabilities(replace(config, cell_shuffle=2))]
    assert [module.average.shape for module in modules] == [(2, 4), (1, 2)]
    assert all(torch.equal(module.average.sum(1), torch.ones(len(module.average))) for module in modules)
