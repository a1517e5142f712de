"""InternLM2, the language model of InternVL2-2B and -8B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .family import Family, Linear, Packing, Vocabulary, chat

if TYPE_CHECKING:
    from torch import Tensor


def _unpack(packed: Tensor, kv_heads: int, head_dim: int) -> Mapping[str, Tensor]:
    """Rows of wqkv [(H + 2 KV) D, C]: per KV head its query heads, then its key, then its value."""
    groups = packed.unflatten(0, (kv_heads, -1, head_dim))  # [KV, H / KV + 2, D, C]
    rows = {"q": groups[:, :-2], "k": groups[:, -2:-1], "v": groups[:, -1:]}
    return {part: group.flatten(0, 2) for part, group in rows.items()}


def _pack(q: Tensor, k: Tensor, v: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    import torch  # configurations are read without it

    return torch.cat([part.unflatten(0, (kv_heads, -1, head_dim)) for part in (q, k, v)], dim=1).flatten(0, 2)


INTERNLM2 = Family(
    name="internlm2",
    embeddings="model.tok_embeddings",
    head="output",
    head_is_adapted=True,
    linears=(
        Linear("attention.wqkv", ("q", "k", "v"), packing=Packing(_unpack, _pack)),
        Linear("attention.wo", ("o",)),
        Linear("feed_forward.w1", ("gate",)),
        Linear("feed_forward.w3", ("up",)),
        Linear("feed_forward.w2", ("down",)),
    ),
    norms={"attention_norm": "attention_norm", "ffn_norm": "ffn_norm"},
    padded_vocabulary=False,
    eos=("<|im_end|>", "</s>"),
    bos_token_id=1,
    # Upstream's template internvl2_chat (xtuner/utils/templates.py), which InternVL2 was trained with.
    prompts=chat(
        "<|im_start|>system\n"
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
        "英文名叫InternVL, 是一个有用无害的人工智能助手。"
        "<|im_end|>",
        "<|im_start|>user\n<image>\n{question}<|im_end|><|im_start|>assistant\n",
        "<|im_end|>",
    ),
    vocabulary=Vocabulary(
        pieces=92538,
        special=(
            *("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>"),
            *("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>"),
            *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
        ),
        byte_level=False,
    ),
)
