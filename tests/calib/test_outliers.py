"""Outliers of trained models: plain 8-bit engines fail on them, a recipe that moves scales does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer

from lira_calib.methods.awq import awq_smoothing
from lira_calib.methods.rules import units
from lira_calib.methods.smoothing import smoothing_groups, smoothing_scale
from lira_calib.methods.statistics import InputStatistics
from lira_calib.runs.layered import LayeredLlm
from lira_calib.runs.observe import observe
from lira_calib.runs.session import opened
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.recipe import NO_RECIPE, Form, Smoothing, StageRecipe, smoothing_key
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.weights import constant_matmuls
from lira_export.synthetic.outliers import MAKER

TILES, LLM, LM_HEAD = "semantic_encoder", "llm", "lm_head"
TOKENS = 80
Scales = Mapping[Smoothing, np.ndarray]


@dataclass(frozen=True)
class Rows:
    """A sequence whose last tokens are the answer."""

    embeds: np.ndarray
    seg_rows: np.ndarray

    @property
    def token_rows(self) -> np.ndarray:
        return np.arange(len(self.embeds) - TOKENS, len(self.embeds))


@dataclass(frozen=True)
class Measured:
    """A stage's graph, what its matmuls read in calibration, and its weights."""

    stage: str
    model: ir.Model
    read: InputStatistics
    weights: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, bundle: Bundle, stage: str, read: InputStatistics) -> Measured:
        model = ir.load(bundle.stage_file(stage))
        weights = {
            one.name: np.asarray(one.weight.numpy(), np.float32) for one in constant_matmuls(model.graph)
        }
        return cls(stage, model, read, weights)

    @property
    def names(self) -> list[str]:
        """Weights that a recipe may round; the LM head stays a float, for it reads an output of the stage."""
        return [name for unit in units(self.model, self.stage) for name in unit.weights if name != LM_HEAD]

    def plain(self, dynamic: bool = False) -> StageRecipe:
        """Both operands in 8 bits, one scale for an activation, nothing moved."""
        ranges = {name: self.read.ranges(name, "minmax") for name in self.names}
        return StageRecipe(
            {name: Form("w8a8", range=found, dynamic=dynamic) for name, found in ranges.items()}
        )

    def weight_only(self, kind: str, scales: Scales | None = None) -> StageRecipe:
        """Weights in blocks, whose activations are rounded by row and block, with or without scales moved."""
        forms = {name: Form(kind, 32) for name in self.names}
        return StageRecipe(forms, *self._moved(scales or {}))

    def smoothed(self, also: str = "") -> StageRecipe:
        """Both operands in 8 bits behind norms, whose large channels move into the weights, and of the weight
        `also`; blocks elsewhere."""
        scales = self.scales()
        forms = dict.fromkeys(self.names, Form("int8", 32))
        for group, scale in scales.items():
            for name in set(group.multiplied) & forms.keys():
                if "norm" in group.name or "mlp1.0" in group.name or name == also:
                    forms[name] = Form("w8a8", range=self.read.smoothed_range(name, scale))
        return StageRecipe(forms, *self._moved(scales))

    def scales(self) -> Scales:
        return {
            group: smoothing_scale(
                self.read.channel_largest(group.multiplied[0]),
                [self.weights[name] for name in group.multiplied],
            )
            for group in smoothing_groups(self.model)
        }

    def awq(self) -> StageRecipe:
        groups = smoothing_groups(self.model)
        return self.weight_only("int4", dict(awq_smoothing(groups, self.read, self.weights.__getitem__, 32)))

    def _moved(self, scales: Scales) -> tuple[tuple[Smoothing, ...], dict[str, np.ndarray]]:
        return tuple(scales), {smoothing_key(group.name): scale for group, scale in scales.items()}


@pytest.fixture(scope="module")
def bundle(outlier_bundle: Path) -> Bundle:
    return Bundle.open(outlier_bundle)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def tiles(bundle: Bundle, seeds: Sequence[int], size: int) -> list[dict[str, np.ndarray]]:
    """Pictures of a few colours with grain."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        colours = np.kron(rng.normal(size=(1, 3, 7, 7)), np.ones((size // 7, size // 7)))
        found.append({"pixel_values": (colours + 0.2 * rng.normal(size=colours.shape)).astype(np.float32)})
    return found


def test_tiles_need_scales_that_move(bundle: Bundle, work: Path) -> None:
    size = bundle.manifest.model.tile_size
    read = InputStatistics()
    observe(ir.load(bundle.stage_file(TILES)), tiles(bundle, range(6), size), read.add, work, 1)
    measured = Measured.of(bundle, TILES, read)
    assert len(smoothing_groups(measured.model)) >= 8

    def features(recipe: StageRecipe) -> np.ndarray:
        model = ir.load(bundle.stage_file(TILES))
        with opened(model, cpu_pipeline(TILES, "mixed", recipe=recipe), work, 1) as session:
            runs = [session.run(feed, ["features"]) for feed in tiles(bundle, range(50, 53), size)]
            return np.concatenate([array[0] for run in runs for _, array in run])

    expected = features(NO_RECIPE)
    error = {
        "plain": moved(features(measured.plain()), expected),
        "dynamic": moved(features(measured.plain(dynamic=True)), expected),
        "smoothed": moved(features(measured.smoothed()), expected),
    }
    assert min(error["plain"], error["dynamic"]) > 0.1, error
    assert error["smoothed"] < 0.04 and error["smoothed"] < error["plain"] / 5, error


def test_a_sequence_needs_scales_that_move(bundle: Bundle, work: Path) -> None:
    llm, read = LayeredLlm(bundle, work / "llm", 1), InputStatistics()
    llm.outputs(sequences(bundle, range(3)), sink=read.add)
    measured = Measured.of(bundle, LLM, read)
    asked = sequences(bundle, range(50, 52))
    expected = llm.outputs(asked)
    tokens = np.concatenate([out.logits.argmax(axis=-1) for out in expected])

    def score(recipe: StageRecipe) -> tuple[float, float]:
        """Return the hidden states' error and the share of tokens that stay."""
        found = llm.outputs(asked, recipe)
        assert found.nonfinite is None
        hidden = [np.concatenate([one.hidden for one in outputs]) for outputs in (found, expected)]
        chosen = np.concatenate([one.logits.argmax(axis=-1) for one in found])
        return moved(*hidden), float(np.mean(chosen == tokens))

    plain, dynamic = score(measured.plain()), score(measured.plain(dynamic=True))
    assert min(plain[0], dynamic[0]) > 0.15 and max(plain[1], dynamic[1]) < 0.8, (plain, dynamic)
    blocks = score(measured.weight_only("int8"))
    scaled = score(measured.weight_only("int8", measured.scales()))
    assert scaled[0] < 0.03 and scaled[1] > 0.95, scaled
    assert 3 * scaled[0] < blocks[0] < plain[0], (scaled, blocks, plain)
    smoothed, spike = score(measured.smoothed()), score(measured.smoothed(f"layers.{MAKER}.down"))
    assert smoothed[0] < 0.05 and smoothed[1] > 0.9, smoothed
    # One neuron is massive, and so is its weight: no scale mends that, a block of its own does.
    assert spike[0] > 2 * smoothed[0] and spike[1] < smoothed[1], (spike, smoothed)
    nearest, awq = score(measured.weight_only("int4")), score(measured.awq())
    assert awq[0] < 0.75 * nearest[0] and awq[1] > nearest[1], (awq, nearest)


def sequences(bundle: Bundle, seeds: Sequence[int]) -> list[Rows]:
    """The system's prompt, features of a tile, and words."""
    tokenizer = Tokenizer.from_file(str(bundle.path / "tokenizer.json"))
    prompt = tokenizer.encode(bundle.manifest.prompts.system, add_special_tokens=False).ids
    table = np.load(bundle.path / "embeddings.npy", mmap_mode="r")
    others = np.setdiff1d(np.arange(len(table)), prompt[:1])
    features = bundle.check_vectors("sefe").inputs["features"][0]
    found = []
    for seed in seeds:
        words = np.random.default_rng(seed).choice(others, TOKENS)
        rows = np.concatenate([table[prompt], features[:32], table[words]])
        found.append(Rows(rows.astype(np.float32), np.arange(0)))
    return found


def moved(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative error [.., C] of the channels that are no outliers; these alone would hide it."""
    sizes = np.abs(expected).reshape(-1, expected.shape[-1]).max(axis=0)
    usual = sizes < 8 * np.median(sizes)
    assert 0 < np.count_nonzero(~usual) < 8 and np.isfinite(found).all()
    error, whole = (found - expected)[..., usual], expected[..., usual]
    return float(np.sqrt(np.square(error).mean() / np.square(whole).mean()))
