"""The exported graphs in ONNX Runtime against arrays recorded from upstream (golden README: tolerances)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.runner import Engines
from lira_export.checkpoint import Checkpoint
from lira_export.graphs.vision import level_names
from lira_export.sources import BASE, PARTS

ENCODER = 2e-4  # encoders, projector, language model
LOGITS = 1e-3  # mask logits span tens
UNDECIDED = 1e-4  # below it a sign is rounding; binary masks are compared at the image's size, where none is
BATCHES = ("AB", "C")


def arrays(golden: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(golden / name, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def bundle(golden_bundle: Path) -> Bundle:
    return Bundle.open(golden_bundle)


def test_golden_semantic_encoder_graph(golden: Path, golden_engines: Engines) -> None:
    data = arrays(golden, "components/vit.npz")
    for i in range(sum(key.startswith("pixel_values") for key in data)):
        found = golden_engines.semantic_encoder.run({"pixel_values": data[f"pixel_values_{i}"]})
        close(found["features"], data[f"extract_feature_{i}"], ENCODER)


@pytest.mark.parametrize("batch", BATCHES)
def test_golden_pixel_encoder_graph(
    golden: Path, golden_engines: Engines, golden_checkpoint: Checkpoint, batch: str
) -> None:
    images = arrays(golden, "components/convnext.npz")[f"images_{batch}"]
    encoded, decoded = (
        arrays(golden, "components/omg_forward.npz"),
        arrays(golden, "components/pixel_decoder.npz"),
    )
    config = golden_checkpoint.config.pixel
    for i, image in enumerate(images):
        found = golden_engines.pixel_encoder.run({"pixel_values": image[None]})
        close(found["pixel_features"][0], encoded[f"clip_feat_{batch}"][i], ENCODER)
        close(found["queries"][0], encoded[f"query_pos_feat_{batch}"][i], ENCODER)
        np.testing.assert_array_equal(found["query_valid"][0], encoded[f"valid_{batch}"][i])
        mask_features = decoded[f"mask_features_{batch}"][i : i + 1]
        close(found["mask_features"], mask_features, ENCODER)
        for level, name in enumerate(level_names(config, "memory")):
            memory = decoded[f"memory{level}_{batch}"][i : i + 1]
            close(found[name], memory, ENCODER)
            resized = torch.nn.functional.interpolate(
                torch.from_numpy(mask_features), memory.shape[2:], mode="bilinear", align_corners=False
            )
            close(found[level_names(config, "attention_features")[level]], resized.numpy(), ENCODER)


def test_golden_sefe_graph(golden: Path, golden_engines: Engines, bundle: Bundle) -> None:
    data, encoded = arrays(golden, "components/projector.npz"), arrays(golden, "components/omg_forward.npz")
    names = sorted(key.removeprefix("prefix_") for key in data if key.startswith("prefix_"))
    assert names
    for name in names:
        batch = name.rstrip("0123456789")
        i = int(name.removeprefix(batch))
        features = data[f"vit_embeds_{name}"]
        cells, queries = (encoded[f"{kind}_{batch}"][i : i + 1] for kind in ("clip_feat", "query_pos_feat"))
        tokens = golden_engines.sefe.run(
            {"features": features[None], "pixel_features": cells, "queries": queries}
        )
        valid = tokens["query_tokens"][0][encoded[f"valid_{batch}"][i]]
        first, second = bundle.separators[:1], bundle.separators[1:]
        prefix = np.concatenate([features, first, tokens["pixel_tokens"][0], second, valid])
        close(prefix, data[f"prefix_{name}"], ENCODER)


def test_golden_llm_graph_prefill_decode_and_chunk(
    golden: Path, golden_engines: Engines, bundle: Bundle
) -> None:
    data = arrays(golden, "components/llm.npz")
    close(bundle.embeddings[data["embed_ids"]], data["embeds"], 0)
    for i in range(sum(key.startswith("inputs_embeds") for key in data)):
        cache = golden_engines.llm.new_cache()
        steps = [
            (data[f"inputs_embeds_{i}"][0], data[f"prefill_logits_{i}"][0], data[f"prefill_hidden_{i}"][0])
        ]
        chunk = tuple(data[f"chunk_{kind}_{i}"][0] for kind in ("embeds", "logits", "hidden"))
        for phase in ("decode", "decode2"):
            ids, logits, hidden = (data[f"{phase}_{kind}_{i}"] for kind in ("ids", "logits", "hidden"))
            singles = zip(bundle.embeddings[ids][:, None], logits[:, None], hidden[:, None], strict=True)
            steps += [*singles, *([chunk] if phase == "decode" else [])]
        for embeds, logits, hidden in steps:
            found = golden_engines.llm.forward(embeds, cache, range(len(embeds)))
            close(found.logits, logits, ENCODER)
            close(found.hidden, hidden, ENCODER)


def test_golden_pixel_decoder_graph(
    golden: Path, golden_engines: Engines, golden_checkpoint: Checkpoint
) -> None:
    checked = 0
    for path in sorted((golden / "e2e").glob("trace_*.npz")):
        trace = arrays(golden, f"e2e/{path.name}")
        image = golden_engines.pixel_encoder.run({"pixel_values": trace["pixel_values"][None]})
        image = {name: image[name] for name in golden_engines.pixel_decoder.input_specs if name in image}
        for i in range(int(trace["n_seg"])):
            hidden = trace[f"seg{i}_hidden"]
            found = golden_engines.pixel_decoder.run({"hidden_states": hidden, **image})["mask_logits"]
            expected = trace[f"seg{i}_mask_logits_s4"][0]
            close(found, expected, LOGITS)
            decided = abs(expected) > UNDECIDED
            np.testing.assert_array_equal((found > 0)[decided], (expected > 0)[decided])
            checked += 1
    assert checked


@pytest.mark.parametrize("stage", STAGES)
def test_golden_graph_is_standard_and_names_no_machine(bundle: Bundle, golden: Path, stage: str) -> None:
    path = bundle.stage_file(stage)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 24
    functions = {(function.domain, function.name) for function in model.functions}
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    for node in (node for body in bodies for node in body):
        assert node.domain == "" or (node.domain, node.op_type) in functions, node.op_type
        assert node.domain == "" or node.domain == "lira"
        if node.op_type == "Resize":
            assert not any(attribute.name == "antialias" and attribute.i for attribute in node.attribute)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # numbers may spell anything
    written = model.SerializeToString()
    folders = [Path.home(), Path(__file__).parents[2], golden]
    for trace in (*(str(folder) for folder in folders if folder.parts[1:]), "site-packages", ".py"):
        assert trace.encode() not in written
    assert not any(value.metadata_props for value in [*model.graph.node, *model.graph.initializer])


def test_golden_manifest_lists_the_graphs_inputs_and_outputs(
    bundle: Bundle, golden_checkpoint: Checkpoint
) -> None:
    config, manifest = golden_checkpoint.config, bundle.manifest
    width, pixel = config.llm.hidden_size, config.pixel
    features = manifest.stages["semantic_encoder"].outputs["features"]
    assert features.shape == ("T", config.vision.tokens_per_tile, width)
    outputs = manifest.stages["pixel_encoder"].outputs
    assert outputs["query_valid"].dtype == "bool"
    assert outputs["pixel_features"].shape[1] == manifest.model.num_cells == pixel.grid**2
    assert manifest.stages["sefe"].inputs["features"].shape == (1, "M", width)
    mask = manifest.stages["pixel_decoder"].outputs["mask_logits"].shape
    assert mask == (1, manifest.model.mask_size, manifest.model.mask_size)
    cache = manifest.stages["llm"].inputs["key_cache.0"].shape
    assert cache == (1, config.llm.num_kv_heads, manifest.model.context_length, config.llm.head_dim)
    tokens = manifest.tokens
    ids = {"[SEG]": tokens.seg, "<image_id>": tokens.image_id, "<p>": tokens.p, "</p>": tokens.p_end}
    assert ids == {token: config.special_token_ids[token] for token in ids}
    assert tokens.region_suffix == config.space_p_token_ids
    files = manifest.provenance["checkpoint_files"]
    assert len(files) == sum(len(golden_checkpoint.paths(part)) for part in (*PARTS, BASE))


@pytest.mark.parametrize("stage", STAGES)
def test_golden_check_vectors_have_no_close_decision(bundle: Bundle, stage: str) -> None:
    with np.load(bundle.path / bundle.manifest.stages[stage].check, allow_pickle=False) as data:
        assert all(data[name] < 1e-4 for name in data.files if name.startswith("noise."))
    vectors = bundle.check_vectors(stage)
    assert all(np.isfinite(array).all() for array in vectors.outputs.values())
    for array in vectors.outputs.values():  # few queries may all be valid
        assert array.any() if array.dtype == bool else array.std() > 0
