"""Sizes of the published models, from the configuration files of their checkpoints.

InternVL2-2B and -8B (InternLM2-chat-1.8B, InternLM2.5-7B-chat); for LIRA-Qwen2-1.5B the language model of
Qwen2-VL-2B with InternVL's tile encoder. Pixel encoder and projector are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lira_engine.errors import LiraError

from ..config import LiraConfig
from ..families import family_of
from .sizes import entries, size_names
from .vocabularies import stand_in_tokenizer

PROTOTYPES = 7
"""Prototypes of a class embedding. In the published file: the largest number of a class's synonyms."""


@dataclass(frozen=True)
class Preset:
    """What a synthetic checkpoint will be.

    Attributes:
        name: of LIRA's file. base, base_config: the base model's folder and its config.json.
        own_config: config.json beside the five files, if upstream's constants do not apply.
    """

    name: str
    base: str
    base_config: dict[str, Any]
    lora_rank: int
    tokenizer: Callable[[], Tokenizer]
    own_config: dict[str, Any] | None = None

    @property
    def config(self) -> LiraConfig:
        if self.own_config is not None:
            return LiraConfig.from_dict(self.own_config, self.name, Path("config.json"))
        return LiraConfig.from_internvl(self.base_config, self.name, Path("config.json"))


def preset(name: str) -> Preset:
    """Return the preset of a size. Raises LiraError if there is no such size."""
    if name == "lira-2b":
        return _internvl("LIRA-2B", "InternVL2-2B", _internlm2(2048, 24, 16, 8192), 128)
    if name == "lira-8b":
        return _internvl("LIRA-8B", "InternVL2-8B", _internlm2(4096, 32, 32, 14336), 256)
    if name == "lira-qwen2-1.5b":
        return _internvl("LIRA-Qwen2-1.5B", "InternVL2-Qwen2-1.5B", _QWEN2, 128)
    added = entries()
    if name not in added:
        raise LiraError(f"size {name!r}: expected one of {', '.join(size_names())}")
    made = added[name].load()()
    assert isinstance(made, Preset)
    return made


def _internvl(name: str, base: str, llm: dict[str, Any], rank: int) -> Preset:
    config = {
        "synthetic": True,
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "use_thumbnail": True,
        "llm_config": llm,
        "vision_config": _INTERN_VIT,
    }
    tokenizer = partial(stand_in_tokenizer, family_of(llm["model_type"]))
    return Preset(name, base, config, rank, tokenizer)


_INTERN_VIT = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "layer_norm_eps": 1e-06,
    "qkv_bias": True,
    "qk_normalization": False,
}
_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}


def _internlm2(width: int, layers: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "vocab_size": 92553,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": intermediate,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rope_theta": 1000000,
    }
