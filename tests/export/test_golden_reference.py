"""The torch reference against arrays recorded from upstream's code (tolerances: the golden README)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lira_export.checkpoint import Checkpoint
from lira_export.config import LiraConfig
from lira_export.model.convnext import shuffle_cells
from lira_export.model.lira import Lira
from lira_export.model.mask_decoder import MaskDecoder
from lira_export.model.projector import cell_queries

ENCODER = 2e-4  # encoders, projector, language model
LOGITS = 1e-3  # class and mask logits span tens
INTERMEDIATE_CLASSES = 2e-2  # a nearly empty mask that gains a pixel moves them by this much
UNDECIDED = 1e-4  # below it a sign is rounding; binary masks are compared at the image's size, where none is
BATCHES = ("AB", "C")
NTK_TRAINED_LENGTH = 64  # max_position_embeddings of llm_ntk.npz, where no README says another one


def arrays(golden: Path, name: str) -> dict[str, torch.Tensor]:
    with np.load(golden / name, allow_pickle=False) as data:
        return {key: torch.from_numpy(data[key]) for key in data.files}


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def config(golden: Path) -> LiraConfig:
    path = golden / "config.json"
    return LiraConfig.from_dict(json.loads(path.read_text()), "golden", path)


@pytest.fixture(scope="module")
def checkpoint(golden: Path, config: LiraConfig) -> Checkpoint:
    return Checkpoint.open(golden / "split", config)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Lira:
    return checkpoint.load_model()


@pytest.fixture(scope="module", autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def test_golden_merged_weights_equal_the_formula(
    golden: Path, checkpoint: Checkpoint, config: LiraConfig
) -> None:
    base = {name: tensor for path in checkpoint.paths("base") for name, tensor in load_file(path).items()}
    lira = torch.load(checkpoint.files.paths["lira"], weights_only=True)
    lira = lira.get("state_dict", lira.get("module", lira))
    scale = json.loads((golden / "config.json").read_text())["lora"]["scaling"]
    names = {
        "attention.wqkv": "qkv",
        "attention.wo": "o",
        "feed_forward.w1": "gate",
        "feed_forward.w2": "down",
    }
    names["feed_forward.w3"] = "up"
    for layer in range(config.llm.num_layers):
        for upstream, ours in names.items():
            stem = f"model.layers.{layer}.{upstream}"
            a, b = (lira[f"llm.base_model.model.{stem}.lora_{x}.default.weight"] for x in "AB")
            expected = base[f"language_model.{stem}.weight"] + scale * (b @ a)
            if ours == "qkv":
                parts = [checkpoint.tensor(f"llm.layers.{layer}.{part}.weight") for part in "qkv"]
                heads = [t.view(config.llm.num_kv_heads, -1, config.llm.head_dim, t.shape[1]) for t in parts]
                found = torch.cat(heads, dim=1).flatten(0, 2)
            else:
                found = checkpoint.tensor(f"llm.layers.{layer}.{ours}.weight")
            close(found, expected, 1e-6)
    assert torch.equal(
        checkpoint.tensor("llm.tok_embeddings.weight"),
        lira["llm.base_model.model.model.tok_embeddings.weight"],
    )


def test_golden_semantic_encoder(golden: Path, model: Lira) -> None:
    data = arrays(golden, "components/vit.npz")
    for i in range(sum(key.startswith("pixel_values") for key in data)):
        tiles = data[f"pixel_values_{i}"]
        close(model.semantic_encoder.vit.embeddings(tiles), data[f"embeddings_{i}"], ENCODER)
        close(model.semantic_encoder.vit(tiles), data[f"last_hidden_state_{i}"], ENCODER)
        close(model.semantic_encoder(tiles), data[f"extract_feature_{i}"], ENCODER)


@pytest.mark.parametrize("batch", BATCHES)
def test_golden_convnext_and_pixel_decoder(golden: Path, model: Lira, batch: str) -> None:
    trunk, decoded = arrays(golden, "components/convnext.npz"), arrays(golden, "components/pixel_decoder.npz")
    stages = model.pixel_encoder.backbone(trunk[f"images_{batch}"])
    for i, stage in enumerate(stages):
        close(stage, trunk[f"res{i + 2}_{batch}"], ENCODER)
    recorded = [trunk[f"res{i}_{batch}"] for i in range(2, 6)]
    mask_features, memories = model.pixel_encoder.pixel_decoder(recorded)
    close(mask_features, decoded[f"mask_features_{batch}"], ENCODER)
    for i, memory in enumerate(memories):
        close(memory, decoded[f"memory{i}_{batch}"], ENCODER)


@pytest.mark.parametrize("batch", BATCHES)
def test_golden_panoptic_head(golden: Path, model: Lira, batch: str) -> None:
    head, decoded = (
        arrays(golden, "components/panoptic_head.npz"),
        arrays(golden, "components/pixel_decoder.npz"),
    )
    mask_features = decoded[f"mask_features_{batch}"]
    memories = [decoded[f"memory{i}_{batch}"] for i in range(3)]
    decoder = model.pixel_encoder.mask_decoder
    feat, pos = decoder.learned_queries(mask_features.shape[0])
    out = decoder(feat, pos, mask_features, memories)
    close(out.query_feat, head[f"query_feat_{batch}"], ENCODER)
    close(pos, head[f"query_pos_{batch}"], 0)
    close(out.mask_logits, head[f"mask_logits_s4_last_{batch}"], LOGITS)
    close(
        decoder.class_logits(out.query_feat, out.mask_logits, mask_features),
        head[f"cls_logits_{batch}"],
        LOGITS,
    )
    close(decoder.iou_logits(out.query_feat), head[f"iou_{batch}"], LOGITS)
    first = decoder.class_logits(feat, out.mask_logits_all[0], mask_features)
    close(first, head[f"cls_and_iou_all_layers_{batch}"][0][..., :-1], INTERMEDIATE_CLASSES)


@pytest.mark.parametrize("batch", BATCHES)
def test_golden_pixel_encoder(golden: Path, model: Lira, batch: str) -> None:
    images, data = arrays(golden, "components/convnext.npz"), arrays(golden, "components/omg_forward.npz")
    out = model.pixel_encoder(images[f"images_{batch}"])
    close(out.pixel_features, data[f"clip_feat_{batch}"], ENCODER)
    close(out.queries, data[f"query_pos_feat_{batch}"], ENCODER)
    assert torch.equal(out.query_valid, data[f"valid_{batch}"])
    assert torch.equal((~data[f"attn_mask_{batch}"]).any(-1), out.query_valid)
    config = model.config.pixel
    _, _, grid = cell_queries(out.class_logits, out.mask_logits, out.queries, config.image_size, config.grid)
    close(grid, data[f"grid_prob_{batch}"], ENCODER)
    assert torch.equal(grid.argmax(1), data[f"grid_argmax_{batch}"])
    cells = shuffle_cells(images[f"res5_{batch}"], config.cell_shuffle)
    close(cells, data[f"clip_feat_{batch}"][..., : cells.shape[-1]], ENCODER)


def test_golden_projector(golden: Path, model: Lira) -> None:
    data, encoded = arrays(golden, "components/projector.npz"), arrays(golden, "components/omg_forward.npz")
    names = sorted(key.removeprefix("prefix_") for key in data if key.startswith("prefix_"))
    assert names
    for name in names:
        batch = name.rstrip("0123456789")
        i = int(name.removeprefix(batch))
        features = data[f"vit_embeds_{name}"]
        cells, queries = (
            encoded[f"clip_feat_{batch}"][i : i + 1],
            encoded[f"query_pos_feat_{batch}"][i : i + 1],
        )
        valid = encoded[f"valid_{batch}"][i]
        close(
            model.projector.project_queries(queries)[0][valid],
            data[f"query_tokens_before_cross_{name}"],
            ENCODER,
        )
        close(model.projector.model_feat(cells)[0], data[f"clip_tokens_before_cross_{name}"], ENCODER)
        pixel_tokens, query_tokens = model.projector(features[None], cells, queries)
        prefix = model.projector.prefix(features, pixel_tokens[0], query_tokens[0], valid)
        close(prefix, data[f"prefix_{name}"], ENCODER)


def test_golden_text_to_vision(golden: Path, model: Lira) -> None:
    data = arrays(golden, "components/text2vision.npz")
    for i in range(len(data) // 2):
        close(model.text2vision(data[f"hidden_{i}"]), data[f"query_{i}"], ENCODER)


@pytest.mark.parametrize("batch", BATCHES)
def test_golden_seg_masks(golden: Path, model: Lira, batch: str) -> None:
    data, decoded = arrays(golden, "components/llm_seg.npz"), arrays(golden, "components/pixel_decoder.npz")
    queries, images = data[f"query_{batch}"], data[f"batch_idx_{batch}"]
    for image in images.unique().tolist():
        of_image = images == image
        memories = [decoded[f"memory{i}_{batch}"][image : image + 1] for i in range(3)]
        found = model.decode_queries(
            queries[of_image], decoded[f"mask_features_{batch}"][image : image + 1], memories
        )
        expected = data[f"mask_logits_all_layers_{batch}"][:, of_image, 0]
        close(torch.stack(found), expected, LOGITS)
        decided = expected[-1].abs() > UNDECIDED
        assert torch.equal((found[-1] > 0)[decided], (expected[-1] > 0)[decided])


def point_queries(
    decoder: MaskDecoder, points: torch.Tensor, width: int, height: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and positions [N,1,D] of upstream's prompt queries for (x, y) pixels [N,2] (LIRA.chat)."""
    half, eps = 3, 1e-3
    scale = torch.tensor([width, height], dtype=torch.float32)
    boxes = torch.cat([points / scale, torch.full_like(points, 2 * half) / scale], dim=-1)
    # Upstream's inverse sigmoid clamps to [eps, 1]; the sigmoid brings the clamped ratio back.
    boxes = boxes.clamp(0, 1)
    low, high = boxes.clamp(min=eps), (1 - boxes).clamp(min=eps)
    pos = decoder.pos_linear(box_encoding(low / (low + high), decoder.config.prompt_num_feats))
    feat = decoder.pb_embedding.weight[0] + decoder.mask_tokens.weight[0]
    return feat.expand(points.shape[0], 1, -1), pos[:, None]


def box_encoding(boxes: torch.Tensor, num_feats: int) -> torch.Tensor:
    """Sine code of (cx, cy, w, h) [N,4] -> [N,4*num_feats], ordered y, x, w, h (as in mmdet)."""
    dim = torch.arange(num_feats, dtype=torch.float32)
    dim = 10000 ** (2 * torch.div(dim, 2, rounding_mode="floor") / num_feats)
    angles = boxes[:, [1, 0, 2, 3], None] * 2 * torch.pi / dim
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(1)


def blocked_outside(regions: torch.Tensor, heads: int) -> Callable[..., torch.Tensor]:
    """In place of MaskDecoder.blocked: attend within regions [B,Q,H,W], whatever mask was predicted."""

    def blocked(mask_logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        mask = F.interpolate(regions, tuple(size), mode="nearest").flatten(2) == 0
        mask = mask & ~mask.all(-1, keepdim=True)
        return mask.repeat_interleave(heads, dim=0)

    return blocked


def test_golden_visual_prompts(golden: Path, model: Lira, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stage offers them; they show that the checkpoint's tensors for them are read."""
    data, decoded = (
        arrays(golden, "components/visual_prompts.npz"),
        arrays(golden, "components/pixel_decoder.npz"),
    )
    decoder, size = model.pixel_encoder.mask_decoder, model.config.pixel.image_size
    for kind, points in (("region", data["region_centers"].float()), ("point", data["points"])):
        for i, image in enumerate(data["batch_idx"].tolist()):
            batch, local = _image_batch(decoded, image)
            memories = [decoded[f"memory{k}_{batch}"][local : local + 1] for k in range(3)]
            feat, pos = point_queries(decoder, points[i : i + 1], size, size)
            with monkeypatch.context() as patched:
                if kind == "region":
                    regions = data["regions"][i : i + 1, None].float()
                    patched.setattr(decoder, "blocked", blocked_outside(regions, decoder.heads))
                out = decoder(feat, pos, decoded[f"mask_features_{batch}"][local : local + 1], memories)
            query = torch.cat([out.query_feat, pos], dim=-1)
            close(query[:, 0], data[f"{kind}_query"][i : i + 1], ENCODER)
            close(model.projector.project_queries(query)[:, 0], data[f"{kind}_embeds"][i : i + 1], ENCODER)


def _image_batch(decoded: dict[str, torch.Tensor], image: int) -> tuple[str, int]:
    first = decoded["mask_features_AB"].shape[0]
    return ("AB", image) if image < first else ("C", image - first)


def test_golden_llm_prefill_decode_and_chunk(golden: Path, model: Lira) -> None:
    data = arrays(golden, "components/llm.npz")
    table = model.llm.tok_embeddings
    close(table(data["embed_ids"]), data["embeds"], 0)
    for i in range(sum(key.startswith("inputs_embeds") for key in data)):
        out = model.llm(data[f"inputs_embeds_{i}"])
        close(out.logits, data[f"prefill_logits_{i}"], ENCODER)
        close(torch.stack(out.all_hidden_states), data[f"prefill_hidden_all_layers_{i}"], ENCODER)
        cache = out.cache
        for phase in ("decode", "chunk", "decode2"):
            if phase == "chunk":
                steps = [data[f"chunk_embeds_{i}"]]
                logits, hidden = data[f"chunk_logits_{i}"], data[f"chunk_hidden_{i}"]
            else:
                steps = [table(token).view(1, 1, -1) for token in data[f"{phase}_ids_{i}"]]
                logits, hidden = (
                    data[f"{phase}_logits_{i}"][:, None, None],
                    data[f"{phase}_hidden_{i}"][:, None, None],
                )
                logits, hidden = list(logits), list(hidden)
            for step, embeds in enumerate(steps):
                out = model.llm(embeds, cache)
                cache = out.cache
                expected = (logits, hidden) if phase == "chunk" else (logits[step], hidden[step])
                close(out.logits, expected[0], ENCODER)
                close(out.hidden_states, expected[1], ENCODER)


def test_golden_llm_dynamic_ntk(golden: Path, config: LiraConfig, checkpoint: Checkpoint) -> None:
    data = arrays(golden, "components/llm_ntk.npz")
    readme = golden / "README.md"
    said = re.search(r"max_position_embeddings=(\d+)", readme.read_text("utf-8") if readme.is_file() else "")
    length = int(said[1]) if said else NTK_TRAINED_LENGTH
    llm = replace(config.llm, max_position_embeddings=length)

    def fresh() -> Lira:
        return Checkpoint.open(checkpoint.files, replace(config, llm=llm)).load_model()

    model = fresh()
    close(model.llm(data["long_embeds"]).logits, data["long_logits"], ENCODER)
    close(model.llm(data["short_embeds"]).logits, data["short_after_long_logits"], ENCODER)
    model = fresh()
    close(model.llm(data["short_embeds"]).logits, data["short_fresh_logits"], ENCODER)
    cache = model.llm(data["cross_embeds"]).cache
    for token, expected in zip(data["cross_ids"], data["cross_logits"], strict=True):
        out = model.llm(model.llm.tok_embeddings(token).view(1, 1, -1), cache)
        cache = out.cache
        close(out.logits[0, 0], expected, ENCODER)
