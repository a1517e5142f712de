"""Make check vectors: inputs of each stage, and the outputs of the fp32 torch reference.

Every engine is compared with them. The two pixel stages decide which query owns a cell and which positions a
query attends to. Rounding may flip a close decision, and then outputs change by more than rounding. So their
noise is measured, and of a few inputs the one with the least noise is taken. How close it was whether a query
owns a cell is recorded, too: what another processor's rounding flips there is told from what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.accuracy import relative_error

from .checkpoint import Checkpoint
from .config import LiraConfig
from .graphs.masks import resized_mask_features
from .graphs.pixel_encoder import memory_sizes
from .graphs.vision import pixel_encoder_outputs
from .model.language_model import Layer, RMSNorm, Rotary
from .model.lira import PixelEncoder
from .model.mask_decoder import MaskDecoder
from .model.projector import Projector, TextToVision
from .model.vit import SemanticEncoder
from .storage import Storage

CANDIDATES = 3
CALM = 2e-5
"""Noise of rounding alone: no decision about where to attend has flipped."""
NEARLY_CALM = 1e-3
"""Noise that is accepted for pictures larger than LARGE: some of their 50 million decisions about where to
attend are always close, no single one matters, and a pass of the reference takes half a minute."""
LARGE = 512
ROUNDING = 1e-6
"""How far, relative to its largest value, a tensor moves after some hundred layers if fp32 sums are taken in
another order."""

VALID = "query_valid"
MASKS_AT_ONCE = 32
LM_HEAD = "llm.lm_head.weight"

Arrays = Mapping[str, np.ndarray]


def semantic_encoder(encoder: SemanticEncoder, config: LiraConfig) -> CheckVectors:
    """Encode two tiles."""
    size, tiles = config.vision.image_size, config.tiles
    pixels = torch.cat([picture(size, seed, tiles.mean, tiles.std) for seed in range(2)])
    with torch.no_grad():
        return _vectors({"pixel_values": pixels}, {"features": encoder(pixels)})


def pixel_encoder(encoder: PixelEncoder, config: LiraConfig) -> CheckVectors:
    """Encode one picture."""
    c, names = config.pixel, pixel_encoder_outputs(config.pixel)
    encoder.masks_at_once = MASKS_AT_ONCE

    def answer(pixels: Tensor) -> tuple[Arrays, Tensor]:
        out = encoder(pixels)
        attention = resized_mask_features(out.mask_features, memory_sizes(c))
        outputs = (out.pixel_features, out.queries, out.query_valid, out.mask_features)
        found = _numpy(dict(zip(names, (*outputs, *attention, *out.memories), strict=True)))
        return found, out.probability.flatten(2)

    def candidate(seed: int) -> CheckVectors:
        pixels = picture(c.image_size, seed, config.pixels.mean, config.pixels.std)
        (found, sums), (moved, moved_sums) = answer(pixels), answer(_moved(pixels))
        noise = _noise(found, moved) | {VALID: relative_error(moved_sums.numpy(), sums.numpy())}
        return CheckVectors(_numpy({"pixel_values": pixels}), found, noise, {VALID: owner_margins(sums)})

    with torch.no_grad():
        return _calmest(map(candidate, range(CANDIDATES)), NEARLY_CALM if c.image_size > LARGE else CALM)


def owner_margins(sums: Tensor) -> np.ndarray:
    """Return how far each query is from owning no cell, if it owns one, or else from owning one: [B,Q]
    float32, relative to the largest of the sums [B,Q,cells], the largest of which in a cell owns it.

    A query that owns cells loses all of them only when it loses the one where it leads most; one without
    gains one where it is behind least.
    """
    best, owner = sums.max(1, keepdim=True)
    others = sums.scatter(1, owner, float("-inf")).amax(1, keepdim=True)  # without the owner
    own = owner == torch.arange(sums.shape[1])[:, None]  # [B,Q,cells]
    lead = (sums - torch.where(own, others, best)).amax(-1)
    return (lead.abs() / sums.abs().max()).numpy()


def sefe(projector: Projector, features: np.ndarray, pixel: Arrays) -> CheckVectors:
    """Fuse the outputs for the tiles [T,N,C] and the picture of the two encoders, as if of one image."""
    inputs = {
        "features": torch.from_numpy(features).flatten(0, 1)[None],
        "pixel_features": torch.from_numpy(pixel["pixel_features"]),
        "queries": torch.from_numpy(pixel["queries"]),
    }
    with torch.no_grad():
        tokens = projector(**inputs)
    return _vectors(inputs, dict(zip(("pixel_tokens", "query_tokens"), tokens, strict=True)))


def llm(
    checkpoint: Checkpoint, rows: np.ndarray, context_length: int, storage: Storage = Storage.EXACT
) -> CheckVectors:
    """Feed ``rows`` [S,C] of embeddings into an empty KV cache; the cache is not recorded.

    The reference runs layer by layer: one layer's weights are in memory at a time.
    """
    embeds = torch.from_numpy(rows)[None, :context_length]
    length = embeds.shape[1]
    positions = torch.tensor([0, length // 2, length - 2, length - 1]).clamp(min=0).unique()
    config = checkpoint.config.llm
    rope = Rotary(config).tables(torch.arange(length))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    x = embeds
    with torch.no_grad():
        for i in range(config.num_layers):
            layer = checkpoint.load_part(lambda: Layer(config), f"llm.layers.{i}.", storage)
            x, _ = layer(x, rope, causal, None)
        norm = checkpoint.load_part(lambda: RMSNorm(config.hidden_size, config.rms_norm_eps), "llm.norm.")
        hidden = norm(x)[:, positions]
        logits = hidden @ storage.fit(LM_HEAD, checkpoint.tensor(LM_HEAD)).T
    inputs = {
        "inputs_embeds": embeds,
        "position": torch.zeros(1, dtype=torch.int64),
        "logit_positions": positions,
    }
    return _vectors(inputs, {"logits": logits, "hidden_states": hidden})


def pixel_decoder(
    text2vision: TextToVision, decoder: MaskDecoder, hidden: np.ndarray, pixel: Arrays, config: LiraConfig
) -> CheckVectors:
    """Decode one of the hidden states [K,C] in the picture of the pixel encoder's vectors."""
    names = pixel_encoder_outputs(config.pixel)[3:]
    image = {name: torch.from_numpy(pixel[name]) for name in names}
    features, memories = image[names[0]], [image[name] for name in names if name.startswith("memory")]

    def answer(row: Tensor) -> Arrays:
        feat, pos = text2vision(row[None])[None].chunk(2, dim=-1)
        return _numpy({"mask_logits": decoder(feat, pos, features, memories).mask_logits[0]})

    def candidate(row: Tensor) -> CheckVectors:
        found = answer(row)
        inputs = _numpy({"hidden_states": row[None], **image})
        return CheckVectors(inputs, found, _noise(found, answer(_moved(row))))

    with torch.no_grad():
        large = config.pixel.image_size > LARGE
        return _calmest(map(candidate, torch.from_numpy(hidden)), NEARLY_CALM if large else CALM)


def picture(size: int, seed: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return a normalised square picture with edges, gradients and grain: [1,3,size,size]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    first, second = rng.random((2, 3, 1, 1))
    pixels = first * (1 - y) + second * x
    for _ in range(6):
        (centre_y, centre_x), radius = rng.random(2), 0.05 + 0.2 * rng.random()
        inside = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
        pixels = np.where(inside, rng.random((3, 1, 1)), pixels)
    pixels = (pixels + rng.normal(0, 0.03, pixels.shape)).clip(0, 1)
    normalised = (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    return torch.from_numpy(normalised[None].astype(np.float32))


def _vectors(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> CheckVectors:
    return CheckVectors(_numpy(inputs), _numpy(outputs))


def _moved(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return x + ROUNDING * x.abs().max() * (2 * torch.rand(x.shape, generator=generator) - 1)


def _noise(found: Arrays, moved: Arrays) -> dict[str, float]:
    return {name: relative_error(moved[name], array) for name, array in found.items()}


def _calmest(candidates: Iterable[CheckVectors], calm: float) -> CheckVectors:
    best, least = None, float("inf")
    for vectors in candidates:
        noise = float("inf") if _flips(vectors) else max(vectors.noise.values())
        if best is None or noise < least:
            best, least = vectors, noise
        if noise <= calm:
            break
    assert best is not None
    return best


def _flips(vectors: CheckVectors) -> bool:
    """Whether rounding of the inputs alone may turn a decision over."""
    return any((array <= 2 * vectors.noise[name]).any() for name, array in vectors.margins.items())


def _numpy(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
