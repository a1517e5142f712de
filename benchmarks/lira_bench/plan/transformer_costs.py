"""Costs of transformers from their sizes alone, for models that have published speeds and no graph here."""

from __future__ import annotations

from dataclasses import dataclass

from lira_bench.plan.graph_costs import Matrix, ModelCosts, StageCosts
from lira_engine.bundle.manifest import ModelSpec

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Decoder:
    """Sizes of a language model with gated MLPs. All have heads of 128."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    head_dim: int = 128

    def costs(self) -> StageCosts:
        """Return the costs, by rows S, rows with logits K, and rows `context` that a row attends to."""
        h, i, q, kv = (
            self.hidden,
            self.intermediate,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        each = [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)]
        rows = 2 * self.layers * sum(inputs * outputs for inputs, outputs in each)
        moved = self.layers * (sum(map(sum, each)) + 2 * q + 2 * kv)
        return StageCosts(
            matrices=(*_matrices(each, self.layers), Matrix(h, self.vocab, 1)),
            other_parameters=(2 * self.layers + 1) * h,
            operations={
                "linear": {"S": rows, "K": 2 * h * self.vocab},
                "attention": {"S*context": 4 * q * self.layers},
            },
            peak=(),
            products=8 * self.layers + 1,
            moved={"S": FLOAT_BYTES * moved, "K": FLOAT_BYTES * (h + self.vocab)},
            unfused={},
        )


@dataclass(frozen=True)
class Vit:
    """Sizes of a vision transformer as in Qwen3-VL: patches of 16 x 16 twice in time, mergers of 2 x 2
    patches behind the last and `taps` other layers."""

    hidden: int
    layers: int
    intermediate: int
    out: int
    taps: int = 3
    patch: int = 3 * 2 * 16 * 16
    merged: int = 4

    def costs(self) -> StageCosts:
        """Return the costs by patches P, all of which attend to all."""
        h, i = self.hidden, self.intermediate
        each = [(h, 3 * h), (h, h), (h, i), (i, h)]
        mergers, wide = 1 + self.taps, self.merged * h
        merge = [(wide, wide), (wide, self.out)]
        layers = self.layers * sum(inputs * outputs for inputs, outputs in each)
        merging = mergers * sum(inputs * outputs for inputs, outputs in merge) // self.merged
        moved = self.layers * (sum(map(sum, each)) + 4 * h) + self.patch + h
        return StageCosts(
            matrices=(
                Matrix(self.patch, h, 1),
                *_matrices(each, self.layers),
                *_matrices(merge, mergers),
            ),
            other_parameters=4 * self.layers * h,
            operations={
                "linear": {"P": 2 * (self.patch * h + layers + merging)},
                "attention": {"P*P": 4 * h * self.layers},
            },
            peak=(),
            products=5 * self.layers + 1 + 2 * mergers,
            moved={"P": FLOAT_BYTES * moved},
            unfused={},
        )


def model_costs(name: str, decoder: Decoder, vit: Vit | None = None) -> ModelCosts:
    """Return the costs of a model: stages llm and, with a ViT, semantic_encoder. It has no other stage."""
    spec = ModelSpec(
        family="qwen3",
        hidden_size=decoder.hidden,
        num_layers=decoder.layers,
        num_heads=decoder.heads,
        num_kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        intermediate_size=decoder.intermediate,
        vocab_size=decoder.vocab,
        context_length=2200,  # the engines' cache
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tile_size=0,
        tokens_per_tile=0,
        pixel_size=0,
        num_queries=0,
        num_cells=0,
        feat_channels=0,
        mask_size=0,
    )
    stages = {"llm": decoder.costs()} | ({"semantic_encoder": vit.costs()} if vit else {})
    return ModelCosts(name, spec, tiles=1, region_rows=0, image_features=0, stages=stages)


def _matrices(sizes: list[tuple[int, int]], times: int) -> list[Matrix]:
    return [Matrix(*one, times * sizes.count(one)) for one in dict.fromkeys(sizes)]
