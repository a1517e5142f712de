"""The smallest manifest that is right, for files that need one beside them."""

from __future__ import annotations

from functools import cache

from lira_engine.bundle.manifest import (
    FileEntry,
    Manifest,
    ModelSpec,
    PixelSpec,
    PreprocessingSpec,
    PromptSpec,
    RegionSpec,
    StageSpec,
    TaskSpec,
    TensorSpec,
    TileSpec,
    TokenSpec,
)

DIGEST = "0" * 64
_MODEL = ModelSpec("internlm2", 8, 1, 2, 1, 4, 12, 20, 16, 1e4, 1e-5, 8, 4, 32, 3, 2, 4, 8)
_PREPROCESSING = PreprocessingSpec(
    TileSpec(8, (0.5,) * 3, (0.25,) * 3, 1, 6, True),
    PixelSpec(32, (0.5,) * 3, (0.25,) * 3, (1, 2, 3)),
    RegionSpec(0.3),
)
_PROMPTS = PromptSpec(
    "<|im_start|>system\nYou are LIRA.<|im_end|>",
    "<|im_start|>user\n<image>\n{question}<|im_end|>",
    False,
    {"vqa": TaskSpec("{expression}", 9, ("<|im_end|>",))},
)
_ENCODED: dict[str, tuple[int | str, ...]] = {
    "pixel_features": (1, 2, 12),
    "queries": (1, 3, 8),
    "query_valid": (1, 3),
    "mask_features": (1, 4, 8, 8),
}
_CACHE: tuple[int | str, ...] = (1, 1, 16, 4)
# Inputs and outputs of each stage.
_TENSORS: dict[str, tuple[dict[str, tuple[int | str, ...]], dict[str, tuple[int | str, ...]]]] = {
    "semantic_encoder": ({"pixel_values": ("T", 3, 8, 8)}, {"features": ("T", 4, 8)}),
    "pixel_encoder": ({"pixel_values": (1, 3, 32, 32)}, _ENCODED),
    "sefe": (
        {"features": (1, "M", 8), "pixel_features": (1, 2, 12), "queries": (1, 3, 8)},
        {"pixel_tokens": (1, 2, 8), "query_tokens": (1, 3, 8)},
    ),
    "llm": (
        {
            "inputs_embeds": (1, "S", 8),
            "position": (1,),
            "logit_positions": ("K",),
            "key_cache.0": _CACHE,
            "value_cache.0": _CACHE,
        },
        {
            "logits": (1, "K", 20),
            "hidden_states": (1, "K", 8),
            "key_cache_out.0": _CACHE,
            "value_cache_out.0": _CACHE,
        },
    ),
    "pixel_decoder": (
        {"hidden_states": (1, 8), "mask_features": (1, 4, 8, 8)},
        {"mask_logits": (1, 8, 8)},
    ),
}
_INTEGERS = ("position", "logit_positions")


@cache
def small_manifest() -> Manifest:
    """Return the manifest; there are no files."""
    names = [f"{stage}.onnx" for stage in _TENSORS] + [f"checks/{stage}.npz" for stage in _TENSORS]
    names += ["embeddings.npy", "separators.npy", "tokenizer.json"]
    stages = {
        stage: StageSpec(f"{stage}.onnx", f"checks/{stage}.npz", _specs(inputs), _specs(outputs))
        for stage, (inputs, outputs) in _TENSORS.items()
    }
    tokens = TokenSpec(1, (2,), 14, 19, 15, 16, (5, 6))
    files = dict.fromkeys(names, FileEntry(DIGEST, 1))
    provenance = {"synthetic": True}
    return Manifest("small", "0.1.0", provenance, _MODEL, _PREPROCESSING, tokens, _PROMPTS, stages, files)


def _specs(tensors: dict[str, tuple[int | str, ...]]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(
            "int64" if name in _INTEGERS else "bool" if name == "query_valid" else "float32", shape
        )
        for name, shape in tensors.items()
    }
