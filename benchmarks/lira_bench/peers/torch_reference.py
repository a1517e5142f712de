"""Peer: the torch reference, run the way upstream runs LIRA (omg_llava/tools/gcg_lira.py).

Eager, fp32 on the CPU (upstream: bf16 on a GPU), with upstream's order of steps: all tiles in one batch; 300
masks of the image's size for 256 cells; class and IoU logits after every decoder layer; logits of all prompt
rows; a KV cache that is concatenated; at each `[SEG]` a projection of the keys and values of all positions in
nine layers. In its favour: the adapters are merged, attention is torch's fused one, linear layers are by
oneDNN where that is faster than MKL, and upstream's debug picture of all queries' masks is left out.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image

from lira_bench.peers.schedule import Answered, forced_answer
from lira_bench.peers.torch_linear import onednn_gain, use_onednn
from lira_engine.bundle.bundle import Bundle
from lira_export.checkpoint import Checkpoint
from lira_export.model.convnext import shuffle_cells
from lira_export.model.lira import PixelEncoder, PixelFeatures
from lira_export.model.projector import cell_queries
from lira_runtime import images, preprocess
from lira_runtime.tokenizer import Tokenizer

QUANTIZATION = (
    "fp32, eager, adapters merged, linear layers by {library} (oneDNN {gain:.1f} times as fast as MKL here); "
    "KV cache fp32, concatenated at each step"
)
ROWS = 256  # of the layer that MKL and oneDNN are compared with


def upstream_pixel_encoder(encoder: PixelEncoder, pixels: torch.Tensor) -> PixelFeatures:
    """Return the features of an image [1,3,P,P], as :class:`PixelEncoder` does, with upstream's head after
    every layer: class and IoU logits of all queries, of which only the last are used."""
    config, decoder = encoder.config, encoder.mask_decoder
    trunk = encoder.backbone(pixels)
    mask_features, memories = encoder.pixel_decoder(trunk)
    feat, pos = decoder.learned_queries(1)
    keys = decoder.keys(memories)
    masks: list[torch.Tensor] = []

    def head() -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.einsum("bqc,bchw->bqhw", decoder.mask_embedding(feat), mask_features)
        masks.append(logits)
        decoder.iou_logits(feat)
        return logits, decoder.class_logits(feat, logits, mask_features)

    logits, classes = head()
    for i, layer in enumerate(decoder.transformer_decoder.layers):
        level = i % len(memories)
        blocked = decoder.blocked(logits, memories[level].shape[-2:])
        feat = layer(feat, pos, *keys[level], blocked, None)
        logits, classes = head()
    queries = torch.cat([feat, pos], dim=-1)
    pixel_queries, valid, owned = cell_queries(classes, logits, queries, config.image_size, config.grid)
    cells = torch.cat([shuffle_cells(trunk[-1], config.cell_shuffle), pixel_queries], dim=-1)
    return PixelFeatures(cells, queries, valid, mask_features, memories, classes, logits, masks, owned)


def mask_at_image_size(logits: torch.Tensor, width: int, height: int) -> np.ndarray:
    """Return the mask, bool [H,W], of logits [1,P/4,P/4] of the padded square."""
    side = max(width, height)
    full = F.interpolate(logits[None], size=(side, side), mode="bilinear", align_corners=False)[0, 0]
    top, left = (side - height) // 2, (side - width) // 2
    return (full[top : top + height, left : left + width].sigmoid() > 0.5).numpy()


class Model:
    """All stages in one process, as upstream has them."""

    def __init__(self, bundle: Path, checkpoint: Path, threads: int, image: Path) -> None:
        """Take prompts, tokens and preprocessing from the bundle, weights from the checkpoint."""
        torch.set_num_threads(threads)
        opened = Bundle.open(bundle, "sizes")
        self._manifest = opened.manifest
        self._tokenizer = Tokenizer(opened.tokenizer_file)
        self._lira = Checkpoint.open(checkpoint).load_model()
        model = opened.manifest.model
        gain = onednn_gain(model.hidden_size, model.intermediate_size, ROWS)
        if gain > 1:
            use_onednn(self._lira)
        self.quantization = QUANTIZATION.format(library="oneDNN" if gain > 1 else "MKL", gain=gain)
        self._image = image
        self._stages: dict[str, float] = {}
        self.masks: list[np.ndarray] = []

    @torch.no_grad()
    def answer(self) -> Answered:
        """Give the whole answer with its given tokens; the greedy argmax is computed all the same."""
        manifest, lira = self._manifest, self._lira
        prompt, schedule = forced_answer(manifest, self._tokenizer)
        self._stages = defaultdict(float)
        self.masks = []
        started = time.perf_counter()
        picture, encoded, prefix = self._look()
        embeds = torch.cat([self._embed(prompt.before), prefix, self._embed(prompt.after)])[None]
        prefill_tokens, singles = embeds.shape[1], 0
        cache, consumed, stage = None, -1, "prefill"
        for token in schedule:
            with self._timed(stage):
                output = lira.llm(embeds, cache)
                output.logits[:, -1].argmax(-1)
            cache = output.cache
            singles += stage == "decode"
            if consumed == manifest.tokens.seg:
                with self._timed("mask"):
                    decoded = lira.decode_masks(
                        output.hidden_states[0, -1:], encoded.mask_features, encoded.memories
                    )
                    self.masks.append(mask_at_image_size(decoded[-1], *picture.size))
            if token in prompt.stop_ids:
                break
            following = [self._embed([token])]
            if token == manifest.tokens.image_id and self.masks:
                with self._timed("region"):
                    following += self._region(picture)
            embeds, consumed = torch.cat(following)[None], token
            stage = "decode" if embeds.shape[1] == 1 else "region_prefill"
        seconds = time.perf_counter() - started
        stages = dict(self._stages)
        areas = [int(mask.sum()) for mask in self.masks]
        decode_ms = 1000 * stages["decode"] / singles
        return Answered(seconds, prefill_tokens, len(schedule), decode_ms, stages, areas)

    def _look(self) -> tuple[Image, PixelFeatures, torch.Tensor]:
        """Return the image, the pixel encoder's features and the visual prefix [P, C]."""
        lira, spec = self._lira, self._manifest.preprocessing
        with self._timed("preprocess"):
            picture = images.open_image(self._image)
            tiles = torch.from_numpy(preprocess.tiles(picture, spec.tile))
            pixels = torch.from_numpy(preprocess.pixel_input(picture, spec.pixel))
        with self._timed("pixel"):
            encoded = upstream_pixel_encoder(lira.pixel_encoder, pixels)
        with self._timed("semantic"):
            features = lira.semantic_encoder(tiles).flatten(0, 1)
        with self._timed("sefe"):
            cells, queries = lira.projector(features[None], encoded.pixel_features, encoded.queries)
            prefix = lira.projector.prefix(features, cells[0], queries[0], encoded.query_valid[0])
        return picture, encoded, prefix

    def _region(self, picture: Image) -> list[torch.Tensor]:
        """Return embeddings [n, C] of the latest mask's region, encoded as one tile, and of " <p>"."""
        spec = self._manifest.preprocessing
        crop, _ = preprocess.highlight_crop(picture, self.masks[-1], spec.region)
        tile = torch.from_numpy(preprocess.region_tile(crop, spec.tile))
        return [self._lira.semantic_encoder(tile)[0], self._embed(self._manifest.tokens.region_suffix)]

    def _embed(self, ids: list[int] | tuple[int, ...]) -> torch.Tensor:
        return self._lira.llm.tok_embeddings(torch.tensor(ids))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._stages[stage] += time.perf_counter() - started

    def close(self) -> None:
        del self._lira
