"""Qwen2 inside InternVL, as the repository of InternVL2-1B lays it out."""

from __future__ import annotations

from .family import Family, Linear, Vocabulary, chat

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
    # Upstream's template qwen_chat: ChatML with a line break after each turn and Qwen2's default system text.
    prompts=chat(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        "<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    vocabulary=Vocabulary(  # of Qwen2-VL
        pieces=151643,
        special=(
            *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
            *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
            *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
        ),
        byte_level=True,
    ),
)
