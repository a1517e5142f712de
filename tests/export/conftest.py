"""A tiny LIRA with random weights, which loads in a second: right shapes, meaningless answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lira_export.checkpoint_writer import write_checkpoint
from lira_export.config import LIRA_TOKENS, LiraConfig
from lira_export.model.lira import Lira

WORDS = ("<unk>", "<s>", "<|im_start|>", "<|im_end|>", "red", "ball")
PROTOTYPES = 2


def tiny_config(**pixel: Any) -> dict[str, Any]:
    """Return the config.json of a checkpoint; ``pixel`` replaces sizes of the pixel encoder."""
    sizes = {"image_size": 64, "shuffle": 2, "queries": 5, "width": 16, "decoder_layers": 4} | pixel
    return {
        "name": "tiny",
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        "llm_config": {
            "vocab_size": len(WORDS) + len(LIRA_TOKENS), "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000,
        },
        "downsample_ratio": 0.5,
        "lora": {"r": 2, "lora_alpha": 4},
        "pixel_encoder": {
            "image_size": sizes["image_size"],
            "pixel_shuffle_down_ratio": sizes["shuffle"],
            "backbone": {"dims": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "clip_embed_dim": 10},
            "panoptic_head": {
                "feat_channels": sizes["width"], "num_things_classes": 3, "num_stuff_classes": 2,
                "num_queries": sizes["queries"], "logit_scale_ln": 4.6052,
                "pixel_decoder": {
                    "num_groups": 4, "num_layers": 1, "num_heads": 2, "num_levels": 3, "num_points": 2,
                    "feedforward_channels": 24,
                },
                "transformer_decoder": {
                    "num_layers": sizes["decoder_layers"], "num_heads": 4, "feedforward_channels": 24,
                },
            },
        },
        "projector": {"depth": 2, "cross_head_num": 4},
        "projector_text2vision": {"depth": 2},
    }  # fmt: skip


def tiny_tokenizer() -> Tokenizer:
    """Return a tokenizer of words, without LIRA's tokens."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@torch.no_grad()
def tiny_lira(**pixel: Any) -> Lira:
    """Return a model whose random weights give masks of both signs."""
    torch.manual_seed(0)
    config = LiraConfig.from_dict(tiny_config(**pixel), "tiny", Path("config.json"))
    model = Lira(config, PROTOTYPES).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3 if parameter.ndim == 4 else parameter[0].numel() ** -0.5)
        elif "norm" not in name:
            parameter.normal_(std=0.3)
    encoder = model.pixel_encoder
    size = encoder.config.image_size
    mask_features, _ = encoder.pixel_decoder(encoder.backbone(torch.randn(1, 3, size, size)))
    encoder.pixel_decoder.mask_feature.bias -= mask_features.mean((0, 2, 3))
    decoder = encoder.mask_decoder
    decoder.class_embed = torch.nn.functional.normalize(torch.randn_like(decoder.class_embed), dim=-1)
    return model


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five files of a tiny LIRA, to be read only; ``copied_checkpoint`` may be changed."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model = tiny_lira()
    embed = model.pixel_encoder.mask_decoder.class_embed
    write_checkpoint(model, embed, tiny_config(), tiny_tokenizer(), folder, "tiny", dtype=torch.float32)
    return folder


@pytest.fixture
def copied_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def make_lira() -> Callable[..., Lira]:
    """:func:`tiny_lira` for tests."""
    return tiny_lira


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield
