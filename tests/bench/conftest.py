"""Shared fixtures: lira-nano with engines, unseen scenes, and for the peers a bundle with only a language
model, whose small sizes are multiples of Q4_K and int4 blocks."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import onnx_ir as ir

SCENES = 6
LLM: dict[str, Any] = {
    "hidden_size": 256, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 512,
    "vocab_size": 320, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
}  # fmt: skip
CONTEXT = 128


@pytest.fixture(scope="session")
def accuracy_bundle(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lira-nano with engines cpu-fp32 and cpu-int4."""
    from lira_engine.build import build

    out = shutil.copytree(nano_bundle, tmp_path_factory.mktemp("nano") / "bundle")
    for precision in ("fp32", "int4"):
        build(out, target="cpu", precision=precision)
    return out


@pytest.fixture(scope="session")
def accuracy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes in every format that `lira-edge eval` reads."""
    from lira_nano.dataset import write_dataset

    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_dataset(folder, seed=4, count=SCENES)
    return folder


@pytest.fixture(scope="session")
def write_language_bundle() -> Callable[..., Path]:
    """write_language_bundle(folder, family, dtype) writes random weights, matrices in `dtype`."""
    return _write_language_bundle


@pytest.fixture(scope="session")
def language_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an InternLM2 in fp32."""
    return _write_language_bundle(tmp_path_factory.mktemp("language") / "bundle")


def _write_language_bundle(root: Path, family: str = "internlm2", dtype: ir.DataType | None = None) -> Path:
    import onnx_ir as ir
    from tokenizers import Tokenizer, models

    from lira_engine.bundle import manifest as m
    from lira_engine.bundle.integrity import sha256_of
    from lira_export.config import LlmConfig
    from lira_export.graphs.llm import build_llm

    root.mkdir(parents=True)
    config = LlmConfig(**LLM, family=family)
    random = np.random.default_rng(0)
    kept = ir.DataType.FLOAT if dtype is None else dtype
    model = build_llm(config, _llm_weights(config, random), CONTEXT, lambda name: kept)
    ir.save(model, root / "llm.onnx", external_data="llm.onnx.data")
    np.save(
        root / "embeddings.npy", random.standard_normal((config.vocab_size, config.hidden_size), np.float32)
    )
    words = {f"t{i}": i for i in range(config.vocab_size)}
    Tokenizer(models.WordLevel(words, unk_token="t0")).save(str(root / "tokenizer.json"))
    stages = {}
    for name in m.STAGES:
        file, check = f"{name}.onnx", f"{name}.npz"
        for listed in (file, check):
            (root / listed).touch()
        read, made = _tensors(config)[name]
        stages[name] = m.StageSpec(file, check, _specs(read), _specs(made))
    sizes = {key: value for key, value in dataclasses.asdict(config).items() if key in LLM}
    pixels = {"tile_size": 28, "tokens_per_tile": 4, "pixel_size": 64, "num_queries": 4, "num_cells": 4}
    files = {path.name: m.FileEntry(sha256_of(path), path.stat().st_size) for path in sorted(root.iterdir())}
    manifest = m.Manifest(
        name="language",
        lira_edge_version="0.1.0",
        provenance={},
        model=m.ModelSpec(
            **sizes,
            **pixels,
            family=family,
            head_dim=config.head_dim,
            context_length=CONTEXT,
            feat_channels=8,
            mask_size=16,
        ),
        preprocessing=m.PreprocessingSpec(
            m.TileSpec(28, (0.5,) * 3, (0.25,) * 3, 1, 6, True),
            m.PixelSpec(64, (0.5,) * 3, (0.25,) * 3, (1, 2, 3)),
            m.RegionSpec(0.3),
        ),
        tokens=m.TokenSpec(bos=1, eos=(2,), seg=300, image_id=301, p=302, p_end=303, region_suffix=(5,)),
        prompts=m.PromptSpec("s", "<image>{question}", False, {}),
        stages=stages,
        files=files,
    )
    (root / "lira.json").write_text(manifest.dumps())
    return root


Shapes = dict[str, tuple["int | str", ...]]


def _tensors(config: Any) -> dict[str, tuple[Shapes, Shapes]]:
    """Return the inputs and outputs that the manifest must name for each stage."""
    c, kept = config.hidden_size, (1, config.num_kv_heads, CONTEXT, config.head_dim)
    layers = range(config.num_layers)
    caches: Shapes = {f"{kind}_cache.{i}": kept for kind in ("key", "value") for i in layers}
    updated: Shapes = {f"{kind}_cache_out.{i}": kept for kind in ("key", "value") for i in layers}
    return {
        "semantic_encoder": ({"pixel_values": ("T", 3, 28, 28)}, {"features": ("T", 4, c)}),
        "pixel_encoder": ({"pixel_values": (1, 3, 64, 64)}, {"query_valid": (1, 4)}),
        "sefe": ({"features": (1, "M", c)}, {"pixel_tokens": (1, 4, c), "query_tokens": (1, 4, c)}),
        "llm": (
            {"inputs_embeds": (1, "S", c), "position": (1,), "logit_positions": ("K",), **caches},
            {"logits": (1, "K", config.vocab_size), "hidden_states": (1, "K", c), **updated},
        ),
        "pixel_decoder": ({"hidden_states": (1, c)}, {"mask_logits": (1, 16, 16)}),
    }


def _specs(shapes: Shapes) -> dict[str, Any]:
    from lira_engine.bundle.manifest import TensorSpec

    kinds = {"position": "int64", "logit_positions": "int64", "query_valid": "bool"}
    return {name: TensorSpec(kinds.get(name, "float32"), shape) for name, shape in shapes.items()}


def _llm_weights(config: Any, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Return weights that keep activations near 1, with biases if the family has them."""
    c, wide = config.hidden_size, config.intermediate_size
    kv = config.num_kv_heads * config.head_dim
    linears = {"q": (c, c), "k": (kv, c), "v": (kv, c), "o": (c, c)}
    linears |= {"gate": (wide, c), "up": (wide, c), "down": (c, wide)}
    shapes: dict[str, tuple[int, ...]] = {"norm": (c,), "lm_head": (config.vocab_size, c)}
    for i in range(config.num_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in linears.items()}
        shapes |= {f"layers.{i}.{name}": (c,) for name in ("attention_norm", "ffn_norm")}
        if config.qkv_bias:
            shapes |= {f"layers.{i}.{name}_bias": linears[name][:1] for name in "qkv"}
    return {
        name: (random.standard_normal(shape, np.float32) / (shape[-1] ** 0.5 if len(shape) == 2 else 1.0))
        for name, shape in shapes.items()
    }
