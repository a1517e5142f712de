"""Upstream's names of tensors outside the language model, whose names are its family's."""

from __future__ import annotations

# Tensors that inference does not use: CLIP's text tower and heads, a second copy of the frozen trunk.
UNUSED = {
    "head": ("backbone.", "panoptic_head.class_embed", "panoptic_head.cls_embed"),
    "clip": (
        "visual.head.",
        "visual.trunk.head.",
        "visual.trunk.norm_pre.",
        "transformer.",
        "token_embedding.",
        "ln_final.",
        "positional_embedding",
        "text_projection",
        "logit_scale",
        "attn_mask",
    ),
}


def is_derived(name: str) -> bool:
    """Return whether a tensor is a buffer of older transformers, which follows from the configuration."""
    return name.endswith((".inv_freq", ".position_ids"))


def vision_source(name: str) -> tuple[str, str]:
    """Return role and upstream's tensor name for a parameter outside the language model."""
    prefixes = (
        ("semantic_encoder.vit.", "base", "vision_model."),
        ("semantic_encoder.mlp1.", "base", "mlp1."),
        ("pixel_encoder.pixel_decoder.", "head", "panoptic_head.pixel_decoder."),
        ("pixel_encoder.mask_decoder.", "head", "panoptic_head."),
        ("pixel_encoder.backbone.", "clip", "visual.trunk."),
        ("projector.", "lira", "projector.model."),
        ("text2vision.", "lira", "projector_text2vision."),
    )
    for ours, role, theirs in prefixes:
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            if role == "clip" and rest.startswith("layer"):
                stage, _, rest = rest.removeprefix("layer").partition(".")
                rest = f"stages.{int(stage) - 1}.{rest}"
            return role, theirs + rest
    raise AssertionError(f"no upstream name for {name}")
