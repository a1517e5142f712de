"""Planted outliers: they are where trained models have them, and the model still works."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from lira_engine.bundle.bundle import Bundle
from lira_engine.main import main
from lira_export.checkpoint import Checkpoint
from lira_export.model.language_model import LanguageModel
from lira_export.model.vit import InternViT
from lira_export.synthetic.outliers import MAKER, MASSIVE, Planting, Stream, plan_outliers
from lira_export.synthetic.presets import Preset, preset
from lira_export.synthetic.synthesize import NOTE, synthesize
from lira_export.synthetic.weights import upstream_shapes
from lira_nano.preset import preset as nano_preset

Arrays = Mapping[str, np.ndarray]
HALF = float(np.finfo(np.float16).max)


def small(name: str) -> Preset:
    made = preset(name)
    config = json.loads(json.dumps(made.base_config))
    config["llm_config"] |= {
        "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }  # fmt: skip
    config["vision_config"] |= {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": 28,
    }  # fmt: skip
    return replace(made, base_config=config, lora_rank=2)


@pytest.mark.parametrize("made", [preset("lira-2b"), preset("lira-qwen2-1.5b"), nano_preset()])
def test_what_is_planted_has_a_tensor(made: Preset) -> None:
    config, vocabulary = made.config, made.base_config["llm_config"]["vocab_size"]
    files = upstream_shapes(config, vocabulary, made.lora_rank).values()
    shapes = {name: shape for file in files for name, shape in file.items()}
    for name, planting in plan_outliers(config, 3, 0).items():
        shape = shapes[name]
        assert all(i < shape[0] for i in planting.rows), name
        assert all(i < shape[-1] for i in {**planting.columns, **planting.added}), name
        assert all(i * shape[-1] + j < math.prod(shape) and j < shape[-1] for i, j in planting.entries), name


def test_pieces_are_planted_as_the_whole_tensor_is() -> None:
    planting = Planting(3, {1: 5, 4: 0.1}, {0: 7, 3: 11}, {3: 100, 2: -1}, {(2, 1): 42, (5, 3): 9})
    for shape in ((6, 4), (6, 2, 3, 4)):
        values = torch.arange(math.prod(shape), dtype=torch.float32)
        row = math.prod(shape[1:])
        expected = values.reshape(shape[0], -1, 4) * 3
        expected[1] *= 5
        expected[4] *= 0.1
        expected[..., 0] *= 7
        expected[..., 3] *= 11
        expected[..., 3] += 100
        expected[..., 2] -= 1
        expected.view(-1, 4)[2, 1] = 42
        expected.view(-1, 4)[5, 3] = 9
        for size in (1, 5, row, 1000):
            pieces = [piece.clone() for piece in values.split(size)]
            for i, piece in enumerate(pieces):
                planting.plant(piece, i * size, shape)
            torch.testing.assert_close(torch.cat(pieces), expected.flatten())


@pytest.mark.parametrize("name", ["lira-2b", "lira-qwen2-1.5b"])
def test_activations_keep_a_size_of_about_one(name: str, tmp_path: Path) -> None:
    """Of all families, and with a head that is the table of embeddings."""
    checkpoint = Checkpoint.open(synthesize(small(name), tmp_path / "model", outliers=True))
    config, table = checkpoint.config, checkpoint.tensor("llm.tok_embeddings.weight")
    llm = checkpoint.load_part(lambda: LanguageModel(config.llm), "llm.")
    stream = Stream.of(config.llm.hidden_size, 0)
    out = llm(table[100:160][None])
    unit = 8 if config.llm.tie_word_embeddings else 1  # the table's columns are of size 1, not 1 / 8
    assert 0.3 < float(out.logits.std()) / unit < 3
    usual = [i for i in range(stream.width) if i not in {*stream.outliers, stream.mark, *stream.massive}]
    assert 0.3 < float(out.hidden_states[..., usual].std()) < 3
    for hidden in out.all_hidden_states[:-1]:
        found = hidden[0].square().mean(0).sqrt()
        for channel, mean in stream.outliers.items():
            assert 0.3 < float(found[channel] / found[usual].mean()) / abs(mean) < 2
    vit = checkpoint.load_part(lambda: InternViT(config.vision), "semantic_encoder.vit.")
    size = config.vision.image_size
    assert bool(vit(torch.randn(2, 3, size, size)).isfinite().all())


def test_the_command_plants_outliers_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lira_export.synthetic.synthesize.preset", lambda name: small("lira-2b"))
    folder = tmp_path / "model"
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["synthesize", "lira-2b", "-o", str(folder), "--outliers"])
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"reproduce: lira-edge synthesize lira-2b --output {folder} --outliers --overwrite"
    )
    assert "massive activations" in (folder / NOTE).read_text()
    planted = Checkpoint.open(folder).tensor("llm.tok_embeddings.weight")
    plain = Checkpoint.open(synthesize(small("lira-2b"), tmp_path / "plain"))
    stream = Stream.of(64, 0)
    changed = (planted != plain.tensor("llm.tok_embeddings.weight")).any(0)
    assert set(changed.nonzero().flatten().tolist()) == {*stream.outliers, stream.mark}


def test_tiles_have_outlier_channels_and_massive_activations(outlier_bundle: Path) -> None:
    bundle = Bundle.open(outlier_bundle)
    pixels = bundle.check_vectors("semantic_encoder").inputs["pixel_values"]
    found = run(bundle, "semantic_encoder", {"pixel_values": pixels})
    norms = [rows[0] for name, rows in found.items() if name.startswith("layer_norm")]
    width = norms[0].shape[-1]
    assert len(norms) >= 2 * 4
    stream = Stream.of(width, 1)
    check_channels([rows for rows in norms if rows.shape[-1] == width], stream)
    sums = [rows[0] for name, rows in found.items() if name.startswith("add") and rows.shape[-1] == width]
    check_massive(sums[2::2], stream)  # after the tokens and positions: attention, MLP, attention, ...


def test_sequences_have_outlier_channels_and_massive_activations(outlier_bundle: Path) -> None:
    bundle = Bundle.open(outlier_bundle)
    spec = bundle.manifest.model
    tokenizer = Tokenizer.from_file(str(outlier_bundle / "tokenizer.json"))
    prompt = tokenizer.encode(bundle.manifest.prompts.system, add_special_tokens=False).ids
    table = np.load(outlier_bundle / "embeddings.npy", mmap_mode="r")
    features = bundle.check_vectors("sefe").inputs["features"][0]
    words = np.random.default_rng(0).choice(np.setdiff1d(np.arange(len(table)), prompt[:1]), 40)
    rows = np.concatenate([table[prompt], features, table[words]]).astype(np.float32)
    feeds: dict[str, np.ndarray] = {
        "inputs_embeds": rows[None],
        "position": np.zeros(1, np.int64),
        "logit_positions": np.arange(len(rows)),
    }
    cache = np.zeros((1, spec.num_kv_heads, spec.context_length, spec.head_dim), np.float32)
    feeds |= {f"{part}_cache.{i}": cache for part in ("key", "value") for i in range(spec.num_layers)}
    found = run(bundle, "llm", feeds)
    stream = Stream.of(spec.hidden_size, 0)
    layers = range(spec.num_layers)
    norms = [found[f"layers.{i}.{norm}.out"][0] for i in layers for norm in ("attention_norm", "ffn_norm")]
    check_channels([*norms, found["hidden_states"][0]], stream)
    check_massive([found[f"layers.{i}.residual"][0] for i in layers], stream)
    neurons = np.abs(found[f"layers.{MAKER}.gated"][0])
    assert neurons[0].max() > 300 > 20 * neurons[1:].max()  # of one neuron, as in trained models


def check_channels(inputs: list[np.ndarray], stream: Stream) -> None:
    """What matmuls read [R, width], beside the first token: outliers of 20 to 100 times the others."""
    assert inputs
    for rows in inputs:
        sizes = np.sqrt((rows[1:] ** 2).mean(0))
        usual = np.median(sizes)
        for channel, mean in stream.outliers.items():
            assert sizes[channel] / usual == pytest.approx(abs(mean), rel=0.35)
        others = np.delete(sizes, [*stream.outliers])
        assert others.max() < 6 * usual


def check_massive(residuals: list[np.ndarray], stream: Stream) -> None:
    """Residuals [R, width] after each layer: thousands of times the median in row 0, from MAKER on."""
    assert len(residuals) > MAKER + 1
    peaks = [np.abs(rows[0, list(stream.massive)]).min() for rows in residuals]
    medians = [np.median(np.abs(rows)) for rows in residuals]
    assert all(peak < 10 * median for peak, median in zip(peaks[:MAKER], medians[:MAKER], strict=True))
    for peak, median in zip(peaks[MAKER:], medians[MAKER:], strict=True):
        assert 1000 * median < peak < 20 * MASSIVE and peak == pytest.approx(peaks[-1], rel=0.1)
    for rows in residuals:
        assert np.abs(rows[1:, list(stream.massive)]).max() < MASSIVE / 50
        assert np.abs(rows).max() < HALF / 8


def run(bundle: Bundle, stage: str, feeds: Arrays) -> dict[str, np.ndarray]:
    """Run the portable graph of a stage; return all floats that it computes, which are finite."""
    path = bundle.path / f"{stage}.onnx"
    model = onnx.load(path)
    given = {output.name for output in model.graph.output}
    for name in computed(model.graph):
        if name not in given:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    for value in model.graph.value_info:
        for output in model.graph.output:
            if value.name == output.name and not output.HasField("type"):
                output.CopyFrom(value)
    onnx.external_data_helper.convert_model_from_external_data(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.type == "tensor(float)"]
    found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    assert len(found) > 20 and all(np.isfinite(array).all() for array in found.values())
    return found


def computed(graph: Any) -> Iterator[str]:
    """Yield outputs of nodes that compute activations."""
    for node in graph.node:
        if node.op_type in ("MatMul", "Add", "Mul", "LayerNormalization", "RMSNormalization"):
            yield node.output[0]
