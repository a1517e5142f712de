"""Sizes of lira-nano: upstream's architecture with a thousandth of its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from lira_export.config import LiraConfig
from lira_export.tokenizer import add_lira_tokens

from .scenes import all_names
from .texts import (
    CAPTION_QUESTION,
    GCG_QUESTION,
    GCG_QUESTION_WITHOUT_ILVC,
    REFSEG_QUESTION,
    REFSEG_QUESTION_WITHOUT_ILVC,
    SYSTEM_PROMPT,
    USER_PROMPT,
)
from .tokenizer import build_tokenizer

CLASSES = (*all_names(), "background")
"""Panoptic classes: every object name is a thing class, the background is the only stuff class."""

CLIP_DIM = 64
CONTEXT_LENGTH = 640


PROMPTS: dict[str, Any] = {
    "system": SYSTEM_PROMPT,
    "user": USER_PROMPT,
    "add_bos": False,
    "tasks": {
        "refseg": {
            "question": REFSEG_QUESTION,
            "question_without_ilvc": REFSEG_QUESTION_WITHOUT_ILVC,
            "lowercase": True,
            "stop": ["<|im_end|>", "<image_id>"],
            "max_new_tokens": 32,
        },
        "gcg": {
            "question": GCG_QUESTION,
            "question_without_ilvc": GCG_QUESTION_WITHOUT_ILVC,
            "stop": ["<|im_end|>"],
            "max_new_tokens": 128,
        },
        "vqa": {"question": "{expression}", "stop": ["<|im_end|>"], "max_new_tokens": 16},
        "caption": {"question": CAPTION_QUESTION, "stop": ["<|im_end|>"], "max_new_tokens": 64},
    },
}


def tokenizers() -> tuple[Tokenizer, Tokenizer]:
    """Return the checkpoint's base tokenizer, and the same with LIRA's six tokens."""
    full = build_tokenizer()
    add_lira_tokens(full)
    return build_tokenizer(), full


def config_dict() -> dict[str, Any]:
    """Return the checkpoint's ``config.json``."""
    base, full = tokenizers()
    special = ("<|im_end|>", "<|im_start|>", "[SEG]", "<p>", "</p>", "<region>", "<mark>", "<image_id>")
    return {
        "model_type": "lira",
        "name": "lira-nano",
        "vision_config": {
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 14,
            "layer_norm_eps": 1e-6,
        },
        "llm_config": {
            "model_type": "internlm2",
            "vocab_size": full.get_vocab_size(),
            "vocab_size_base_checkpoint": base.get_vocab_size(),
            "hidden_size": 160,
            "intermediate_size": 432,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        },
        "downsample_ratio": 0.5,
        "max_dynamic_patch": 1,
        "min_dynamic_patch": 1,
        "use_thumbnail": True,
        "lora": {"r": 4, "lora_alpha": 8},
        "pixel_encoder": {
            "image_size": 192,
            # Upstream keeps a query only where it wins a cell: 6 x 6 cells need res5 without pixel shuffle.
            "pixel_shuffle_down_ratio": None,
            "backbone": {"dims": [32, 64, 128, 256], "depths": [1, 1, 2, 1], "clip_embed_dim": CLIP_DIM},
            "panoptic_head": {
                "feat_channels": 64,
                "num_things_classes": len(CLASSES) - 1,
                "num_stuff_classes": 1,
                "num_queries": 16,
                "logit_scale_ln": 4.6052,
                "pixel_decoder": {
                    "num_groups": 32,
                    "num_layers": 2,
                    "num_heads": 4,
                    "num_levels": 3,
                    "num_points": 4,
                    "feedforward_channels": 256,
                },
                "transformer_decoder": {"num_layers": 3, "num_heads": 4, "feedforward_channels": 256},
            },
        },
        "projector": {"depth": 2, "cross_head_num": 8},
        "projector_text2vision": {"depth": 2},
        "special_token_ids": {token: full.token_to_id(token) for token in special},
        "bos_token_id": full.token_to_id("<s>"),
        "prompts": PROMPTS,
        "context_length": CONTEXT_LENGTH,
    }


def nano_config() -> LiraConfig:
    """Return the configuration as the checkpoint reader gives it."""
    return LiraConfig.from_dict(config_dict(), "lira-nano", Path("lira-nano/config.json"))


def class_embeddings() -> torch.Tensor:
    """Return fixed orthonormal class embeddings [classes, 1, CLIP_DIM]; upstream takes CLIP's."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(CLIP_DIM, CLIP_DIM, generator=generator))
    return basis[: len(CLASSES), None].contiguous()
