"""Language model families: how each one's checkpoint names its tensors, and what else tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lira_engine.errors import LiraError

LLM_PREFIX = "llm.base_model.model."
"""In LIRA's file; ``language_model.`` is the base model's."""


@dataclass(frozen=True)
class Linear:
    """A linear layer as the checkpoint has it, and the reference model's names for what it holds."""

    name: str
    parts: tuple[str, ...]
    bias: bool = False


@dataclass(frozen=True)
class Family:
    """Names are upstream's, without prefixes and ``.weight``.

    Attributes:
        head: LM head, where the embeddings do not serve as one.
        head_is_adapted: the head is a LoRA layer and lives in LIRA's file, with its adapter.
        norms: our name of a layer's norm -> upstream's.
        padded_vocabulary: the base model has more rows than tokens; LIRA's file has one row per token.
        eos: tokens that end an answer, the turn's end first.
    """

    name: str
    embeddings: str
    head: str
    head_is_adapted: bool
    linears: tuple[Linear, ...]
    norms: Mapping[str, str]
    padded_vocabulary: bool
    eos: tuple[str, ...]
    bos_token_id: int

    @property
    def qkv_bias(self) -> bool:
        return self.linears[0].bias


INTERNLM2 = Family(
    name="internlm2",
    embeddings="model.tok_embeddings",
    head="output",
    head_is_adapted=True,
    linears=(
        Linear("attention.wqkv", ("q", "k", "v")),
        Linear("attention.wo", ("o",)),
        Linear("feed_forward.w1", ("gate",)),
        Linear("feed_forward.w3", ("up",)),
        Linear("feed_forward.w2", ("down",)),
    ),
    norms={"attention_norm": "attention_norm", "ffn_norm": "ffn_norm"},
    padded_vocabulary=False,
    eos=("<|im_end|>", "</s>"),
    bos_token_id=1,
)
# Qwen2 inside InternVL, as InternVL2-1B's repository lays it out.
QWEN2 = Family(
    name="qwen2",
    embeddings="model.embed_tokens",
    head="lm_head",
    head_is_adapted=False,
    linears=(
        Linear("self_attn.q_proj", ("q",), bias=True),
        Linear("self_attn.k_proj", ("k",), bias=True),
        Linear("self_attn.v_proj", ("v",), bias=True),
        Linear("self_attn.o_proj", ("o",)),
        Linear("mlp.gate_proj", ("gate",)),
        Linear("mlp.up_proj", ("up",)),
        Linear("mlp.down_proj", ("down",)),
    ),
    norms={"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    padded_vocabulary=True,
    eos=("<|im_end|>", "<|endoftext|>"),
    bos_token_id=151643,
)
FAMILIES = {family.name: family for family in (INTERNLM2, QWEN2)}


def family_of(name: str) -> Family:
    """Raises LiraError for a language model that cannot be exported."""
    if name not in FAMILIES:
        raise LiraError(
            f"language model {name!r}: expected one of {', '.join(FAMILIES)} as model_type of llm_config; "
            "is this the base model that LIRA was trained on?"
        )
    return FAMILIES[name]
