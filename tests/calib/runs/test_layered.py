"""The language model run layer by layer is the language model, and computes nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import onnx_ir as ir
import pytest

from lira_calib.runs.layered import LayeredLlm, Outputs
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import Form, Smoothing, StageRecipe, codes_key, scales_key, smoothing_key
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.int4_blocks import quantize_positive
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.llm import OrtLlm

pytestmark = pytest.mark.portable
PIECES = 5  # lira-nano's four layers, and the head


@dataclass(frozen=True)
class Recorded:
    """A sequence in memory."""

    embeds: np.ndarray
    token_rows: np.ndarray
    seg_rows: np.ndarray


@pytest.fixture(scope="session")
def bundle(nano_bundle: Path) -> Bundle:
    return Bundle.open(nano_bundle)


@pytest.fixture(scope="session")
def sequences(bundle: Bundle) -> list[Recorded]:
    """Three of the vocabulary's embeddings, of different lengths."""
    rng = np.random.default_rng(0)
    lengths = (40, 7, 90)
    table = bundle.embeddings
    rows = [table[rng.integers(0, len(table), length)].astype(np.float32) for length in lengths]
    return [
        Recorded(embeds, np.arange(len(embeds) - 5, len(embeds)), np.array([len(embeds) - 2]))
        for embeds in rows
    ]


class Counted:
    """Counts runs, and interrupts after some of them."""

    def __init__(self, most: int | None = None) -> None:
        self.runs, self.most = 0, most

    def __call__(self, done: int, of: int) -> None:
        self.runs += 1
        if self.runs == self.most:
            raise KeyboardInterrupt


def same(found: Outputs, expected: Outputs) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(np.array_equal(a.logits, b.logits) and np.array_equal(a.hidden, b.hidden) for a, b in pairs)


def test_outputs_are_those_of_the_whole_engine(
    bundle: Bundle, sequences: list[Recorded], tmp_path: Path
) -> None:
    """One pass of all rows against prefill and decode steps: equal up to the order of sums."""
    outputs = LayeredLlm(bundle, tmp_path, 1).outputs(sequences)
    assert len(outputs) == len(sequences) and outputs.nonfinite is None
    with OrtLlm(bundle.stage_file("llm"), 1) as llm:
        for sequence, found in zip(sequences, outputs, strict=True):
            cache, rows = llm.new_cache(), len(sequence.embeds)
            first = llm.forward(sequence.embeds[: rows - 4], cache)
            steps = [first, *(llm.forward(sequence.embeds[i : i + 1], cache) for i in range(rows - 4, rows))]
            for name in ("logits", "hidden"):
                expected = np.concatenate([getattr(step, name) for step in steps])
                expected = np.concatenate([expected, expected[[3]]])  # the row of [SEG] comes again
                largest = float(np.abs(expected).max())
                np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=3e-6 * largest)
            np.testing.assert_array_equal(
                found.logits[:5].argmax(-1), [int(step.logits[-1].argmax()) for step in steps]
            )


def test_fp32_outputs_are_computed_once(bundle: Bundle, sequences: list[Recorded], tmp_path: Path) -> None:
    first = LayeredLlm(bundle, tmp_path, 1, progress=(counted := Counted())).outputs(sequences)
    assert counted.runs == PIECES * len(sequences)
    again = LayeredLlm(bundle, tmp_path, 1, progress=(counted := Counted())).outputs(sequences)
    assert counted.runs == 0 and same(again, first)


def test_a_run_that_was_killed_goes_on_at_its_layer(
    bundle: Bundle, sequences: list[Recorded], tmp_path: Path
) -> None:
    expected = LayeredLlm(bundle, tmp_path / "whole", 1).outputs(sequences)
    work = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        LayeredLlm(bundle, work, 1, progress=Counted(2 * 3 + 2)).outputs(sequences)
    found = LayeredLlm(bundle, work, 1, progress=(counted := Counted())).outputs(sequences)
    assert counted.runs == (PIECES - 2) * len(sequences) and same(found, expected)


def test_rows_are_kept_as_far_as_the_disk_allows(
    bundle: Bundle, sequences: list[Recorded], tmp_path: Path
) -> None:
    def kept(limit: int) -> tuple[int, Outputs]:
        folder = tmp_path / str(limit)
        outputs = LayeredLlm(bundle, folder, 1, kept_bytes=limit).outputs(sequences)
        return len(list(folder.glob("*.npy"))) // len(sequences), outputs

    bytes_of_a_layer = sum(sequence.embeds.nbytes for sequence in sequences)
    found = {layers: kept(layers * bytes_of_a_layer) for layers in (PIECES, 3, 2, 0)}
    assert [number for number, _ in found.values()] == [4, 2, 1, 0]
    assert all(same(outputs, found[PIECES][1]) for _, outputs in found.values())


def test_a_sequence_that_is_recorded_anew_is_run_anew(
    bundle: Bundle, sequences: list[Recorded], tmp_path: Path
) -> None:
    llm = LayeredLlm(bundle, tmp_path, 1)
    llm.outputs(sequences[:1])
    other = replace(sequences[0], embeds=sequences[0].embeds * np.float32(1.01))
    fewer = replace(sequences[0], token_rows=sequences[0].token_rows[:2])
    expected = LayeredLlm(bundle, tmp_path / "new", 1).outputs([other, fewer])
    assert same(llm.outputs([other, fewer]), expected)
    assert [len(output.logits) for output in expected] == [6, 3]


def test_the_sink_gets_what_matmuls_read(bundle: Bundle, sequences: list[Recorded], tmp_path: Path) -> None:
    llm = LayeredLlm(bundle, tmp_path, 1)
    weights = {piece.name: piece.weights for piece in llm.pieces}
    found: dict[str, list[np.ndarray]] = {}

    def sink(name: str, rows: np.ndarray) -> None:
        found.setdefault(name, []).append(rows.copy())

    outputs = llm.outputs(sequences, sink=sink, start=3)
    assert sorted(found) == sorted([*weights["layers.3"], *weights["head"]])
    asked = [len(output.hidden) for output in outputs]
    rows = [len(sequence.embeds) for sequence in sequences]
    for name, arrays in found.items():
        few = name in ("lm_head", *(f"layers.3.{part}" for part in ("o", "gate", "up", "down")))
        assert [len(array) for array in arrays] == (asked if few else rows), name
    for array, output in zip(found["lm_head"], outputs, strict=True):
        np.testing.assert_array_equal(array, output.hidden)

    found.clear()
    llm.observe(0, sequences, sink)
    assert sorted(found) == sorted(weights["layers.0"])
    norm = next(
        value.const_value
        for value in llm.pieces[0].model.graph.initializers.values()
        if value.name == "layers.0.attention_norm"
    )
    assert norm is not None
    for array, sequence in zip(found["layers.0.q"], sequences, strict=True):
        x = sequence.embeds
        scale = np.sqrt(np.square(x).mean(-1, keepdims=True) + bundle.manifest.model.rms_norm_eps)
        np.testing.assert_allclose(array, x / scale * norm.numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_not_finite_is_named(bundle: Bundle, sequences: list[Recorded], tmp_path: Path) -> None:
    embeds = sequences[1].embeds.copy()
    embeds[2, 3] = np.inf
    llm = LayeredLlm(bundle, tmp_path, 1)
    broken = [sequences[0], replace(sequences[1], embeds=embeds)]
    assert llm.outputs(broken).nonfinite == "layers.0"
    assert llm.outputs(broken).nonfinite is not None  # as kept on disk


def recipe_of(llm: LayeredLlm, layers: Sequence[int]) -> StageRecipe:
    """Four bits, eight bits with a smoothed input, and codes, in the given pieces."""
    forms, groups, tensors = {}, [], {}
    for number in layers:
        piece = llm.pieces[number]
        for name in piece.weights:
            forms[name] = Form("int4", 32)
        coded = piece.weights[-1]
        stored = piece.model.graph.initializers[coded].const_value
        assert stored is not None
        packed, scales = quantize_scaled(stored.numpy())
        forms[coded] = Form("int4", 64, "gptq")
        tensors |= {codes_key(coded): packed, scales_key(coded): scales}
        if number < PIECES - 1:
            group = Smoothing(
                f"layers.{number}.ffn_norm",
                (f"layers.{number}.ffn_norm",),
                (f"layers.{number}.gate", f"layers.{number}.up"),
            )
            groups.append(group)
            width = stored.shape[1]  # of the down projection: C
            tensors[smoothing_key(group.name)] = np.linspace(0.5, 2, int(width), dtype=np.float32)
            for name in group.multiplied:
                forms[name] = Form("w8a8", range=(-20.0, 20.0))
    return StageRecipe(forms, tuple(groups), tensors)


def quantize_scaled(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes that no build would choose: of a smaller weight."""
    found = quantize_positive(np.asarray(weight, np.float32) * np.float32(0.9), 64)
    return found.packed, found.scales.astype(np.float16)


def test_a_recipe_gives_what_its_engine_gives(
    bundle: Bundle, sequences: list[Recorded], tmp_path: Path
) -> None:
    llm = LayeredLlm(bundle, tmp_path / "work", 1)
    plain = llm.outputs(sequences)
    recipe = recipe_of(llm, range(PIECES))
    found = llm.outputs(sequences, recipe)
    file = tmp_path / "llm.onnx"
    save_graph(apply(ir.load(bundle.stage_file("llm")), cpu_pipeline("llm", MIXED, recipe=recipe)), file)
    with OrtLlm(file, 1) as whole:
        for sequence, output, exact in zip(sequences, found, plain, strict=True):
            rows = [*sequence.token_rows, *sequence.seg_rows]
            expected = whole.forward(sequence.embeds, whole.new_cache(), rows)
            for name in ("logits", "hidden"):
                one, other = getattr(output, name), getattr(expected, name)
                np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * float(np.abs(other).max()))
                assert np.abs(one - getattr(exact, name)).max() > 0.01 * np.abs(other).max()


def test_a_candidate_begins_at_the_layer_that_it_changes(
    bundle: Bundle, sequences: list[Recorded], tmp_path: Path
) -> None:
    llm = LayeredLlm(bundle, tmp_path, 1, progress=(counted := Counted()))
    llm.outputs(sequences)
    there = sorted(tmp_path.iterdir())
    for first, number in ((4, 1), (2, 3)):
        recipe, counted.runs = recipe_of(llm, [first]), 0
        found = llm.outputs(sequences, recipe)
        assert counted.runs == number * len(sequences)
        assert same(found, LayeredLlm(bundle, tmp_path / "anew", 1).outputs(sequences, recipe))
        del found
        rmtree(tmp_path / "anew")
        assert sorted(tmp_path.iterdir()) == there  # a candidate leaves nothing


def test_a_candidate_keeps_the_rows_of_one_layer(
    bundle: Bundle, sequences: list[Recorded], tmp_path: Path
) -> None:
    most = 0

    def count(done: int, of: int) -> None:
        nonlocal most
        most = max(most, len(list(tmp_path.glob("candidate-*/*.np*"))))

    llm = LayeredLlm(bundle, tmp_path, 1, progress=count)
    llm.outputs(sequences, recipe_of(llm, [0]))
    assert most == 2 * len(sequences)  # those that are read, and those that are made


def test_the_sink_gets_smoothed_rows(bundle: Bundle, sequences: list[Recorded], tmp_path: Path) -> None:
    """Smoothing alone leaves the results as they are, so that rows of the fp32 model serve it."""
    llm = LayeredLlm(bundle, tmp_path, 1, progress=(counted := Counted()))
    plain: dict[str, np.ndarray] = {}
    llm.outputs(sequences[:1], sink=lambda name, rows: plain.update({name: rows.copy()}))
    smoothed = replace(recipe_of(llm, [2]), forms={})
    found: dict[str, np.ndarray] = {}
    counted.runs = 0
    rows = {file: file.read_bytes() for file in tmp_path.glob("*.npy")}
    llm.observe(2, sequences[:1], lambda name, rows: found.update({name: rows.copy()}), smoothed)
    assert counted.runs == 1
    assert rows == {file: file.read_bytes() for file in tmp_path.glob("*.npy")}
    scale = smoothed.smoothing_scale(smoothed.smoothing[0])
    for name in smoothed.smoothing[0].multiplied:
        np.testing.assert_allclose(found[name] * scale, plain[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["layers.2.q"], plain["layers.2.q"], rtol=1e-5, atol=1e-6)


def test_weights_of_a_piece_are_not_kept(bundle: Bundle, sequences: list[Recorded], tmp_path: Path) -> None:
    llm = LayeredLlm(bundle, tmp_path, 1)
    held = llm.pieces[0].model.graph.initializers["layers.0.down"].const_value
    assert isinstance(held, ir.ExternalTensor)
    before = held.numpy().copy()
    llm.outputs(sequences[1:2])
    for piece in llm.pieces:
        for value in piece.model.graph.initializers.values():
            assert not isinstance(value.const_value, ir.ExternalTensor) or value.const_value.raw is None
    array = held.numpy()
    llm.observe(0, sequences[:1], lambda name, rows: None)
    np.testing.assert_array_equal(array, before)  # one that is in use stays
    np.testing.assert_array_equal(held.numpy(), before)
