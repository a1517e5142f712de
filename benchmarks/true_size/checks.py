"""Steps of run.py, each run in a process of its own: checks.py WORK NAME OUT ARGUMENT."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import read_graph
from lira_engine.engines.accuracy import relative_error
from lira_engine.ort.session import open_session, shrinking_arena
from lira_engine.ort.stage import OrtStage

LAYERS = 4


def rss_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def reference(work: Path) -> Any:
    """Return the synthetic LIRA-2B checkpoint and its pixel encoder as the torch reference."""
    from lira_export.checkpoint import Checkpoint
    from lira_export.model.lira import PixelEncoder
    from lira_export.storage import Storage

    checkpoint = Checkpoint.open(work / "checkpoints" / "lira-2b")
    prototypes = checkpoint.class_embed.shape[1]
    make = lambda: PixelEncoder(checkpoint.config, prototypes)  # noqa: E731
    return checkpoint, checkpoint.load_part(make, "pixel_encoder.", Storage())


def pixel_graph(work: Path, kind: str) -> dict[str, Any]:
    """Write our graph ("lowered"), or the reference's steps ("straightforward"): 300 masks of the image's
    size, and those of every layer at a quarter of it."""
    import onnx_ir as ir
    import torch

    from lira_export.graphs import vision
    from lira_export.graphs.functions import DOMAIN, DOMAIN_VERSION, deformable_sampling
    from lira_export.graphs.pixel_encoder import memory_sizes
    from lira_export.graphs.trace import trace

    checkpoint, encoder = reference(work)
    config = checkpoint.config
    if kind == "lowered":
        model = vision.pixel_encoder(encoder, config)
    else:

        class Straightforward(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = encoder

            def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
                out = self.encoder(pixel_values)
                return out.pixel_features, out.queries, out.query_valid, out.mask_features, *out.memories

        image = {"pixel_values": torch.zeros(1, 3, config.pixel.image_size, config.pixel.image_size)}
        names = ["pixel_features", "queries", "query_valid", "mask_features"]
        names += [f"memory_{stride}" for stride in (32, 16, 8)]
        model = trace("pixel_encoder", Straightforward(), image, names)
    c = config.pixel
    if DOMAIN in {node.domain for node in model.graph}:
        body = deformable_sampling(memory_sizes(c), c.num_heads, c.feat_channels // c.num_heads, c.num_points)
        model.functions[body.identifier()] = body
        model.opset_imports[DOMAIN] = DOMAIN_VERSION
    folder = work / "pixel" / kind
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(model, folder / "g.onnx", external_data="g.onnx.data", size_threshold_bytes=1024)
    return {"nodes": len(model.graph)}


def pixel_run(work: Path, kind: str) -> dict[str, Any]:
    """Run a graph once to warm up, then timed. "KIND-defaults" takes ONNX Runtime's default options,
    "KIND-plain" those without the memory arena."""
    pixels = Bundle.open(work / "bundles" / "lira-2b", "sizes").check_vectors("pixel_encoder").inputs
    graph, _, others = kind.partition("-")
    path = work / "pixel" / graph / "g.onnx"
    settings = onnxruntime.SessionOptions()
    settings.enable_cpu_mem_arena = others != "plain"
    session = onnxruntime.InferenceSession(path, settings) if others else open_session(path)
    options = None if others else shrinking_arena()
    weights = rss_mib()
    session.run(None, dict(pixels), options)
    started = time.perf_counter()
    session.run(None, dict(pixels), options)
    return {"run_s": round(time.perf_counter() - started, 2), "weights_mib": weights}


def parity(work: Path) -> dict[str, Any]:
    """Compare LIRA-2B's stages but the language model in ONNX Runtime with the torch reference.

    The semantic encoder takes seven tiles, the others the bundle's check vectors, whose outputs the reference
    computed at the export. Relative error: largest difference over largest value.
    """
    import torch

    from lira_export import checks
    from lira_export.checkpoint import Checkpoint
    from lira_export.model.vit import SemanticEncoder
    from lira_export.storage import Storage

    bundle = Bundle.open(work / "bundles" / "lira-2b", "sizes")
    checkpoint = Checkpoint.open(work / "checkpoints" / "lira-2b")
    config, tile = checkpoint.config, checkpoint.config.tiles
    make = lambda: SemanticEncoder(config.vision, config.llm.hidden_size)  # noqa: E731
    encoder = checkpoint.load_part(make, "semantic_encoder.", Storage(torch.float16))
    size = config.vision.image_size
    tiles = torch.cat([checks.picture(size, seed, tile.mean, tile.std) for seed in range(7)])
    with torch.no_grad():
        expected = torch.cat([encoder(one[None]) for one in tiles]).numpy()
    del encoder
    found: dict[str, Any] = {}
    with OrtStage(
        "s", bundle.stage_file("semantic_encoder"), bundle.manifest.stages["semantic_encoder"]
    ) as s:
        features = s.run({"pixel_values": tiles.numpy()})["features"]
    found["semantic_encoder"] = {"tiles": 7, "features": relative_error(features, expected)}
    for stage in ("pixel_encoder", "sefe", "pixel_decoder"):
        vectors = bundle.check_vectors(stage)
        with OrtStage(stage, bundle.stage_file(stage), bundle.manifest.stages[stage]) as runner:
            outputs = runner.run(vectors.inputs)
        found[stage] = {name: relative_error(outputs[name], array) for name, array in vectors.outputs.items()}
        found[stage] |= {f"noise.{name}": noise for name, noise in vectors.noise.items()}
    return {"stages": found}


def parity_llm(work: Path) -> dict[str, Any]:
    """Compare the first four layers of LIRA-2B's language model, teacher-forced, with the torch reference."""
    import torch

    from lira_export.checkpoint import Checkpoint
    from lira_export.llm_pieces import run_in_pieces
    from lira_export.model.language_model import Layer, Rotary
    from lira_export.storage import Storage

    bundle = Bundle.open(work / "bundles" / "lira-2b", "sizes")
    checkpoint = Checkpoint.open(work / "checkpoints" / "lira-2b")
    config = checkpoint.config.llm
    length = 64
    rows = np.random.default_rng(0).integers(0, config.vocab_size, length)
    embeds = np.asarray(bundle.embeddings[rows], np.float32)[None]
    x = torch.from_numpy(embeds)
    rope = Rotary(config).tables(torch.arange(length))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    with torch.no_grad():
        for i in range(LAYERS):
            make = lambda: Layer(config)  # noqa: E731
            layer = checkpoint.load_part(make, f"llm.layers.{i}.", Storage(torch.float16))
            x, _ = layer(x, rope, causal, None)
    feeds: dict[str, np.ndarray] = {
        "inputs_embeds": embeds,
        "position": np.zeros(1, np.int64),
        "logit_positions": np.array([0]),
    }
    for done, outputs in run_in_pieces(bundle.stage_file("llm"), config.num_layers, feeds):
        if done == LAYERS:
            found = next(iter(outputs.values()))[0]
            break
    expected = x[0].numpy()
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosine = (found * expected).sum(-1) / norms
    return {
        "layers": LAYERS,
        "rows": length,
        "smallest_cosine": float(cosine.min()),
        "largest_error": float(np.abs(found - expected).max()),
        "largest_value": float(np.abs(expected).max()),
    }


def lowered(work: Path, argument: str) -> dict[str, Any]:
    """Run a stage of LIRA-2B, lowered for TensorRT, in ONNX Runtime on the check vectors. `argument`:
    STAGE:PRECISION:DIALECT."""

    from lira_engine.bundle.external_data import save_graph
    from lira_engine.engines.accuracy import check_stage_outputs
    from lira_engine.engines.replay import run_llm, run_stage
    from lira_engine.lowering.pipeline import apply
    from lira_engine.lowering.tensorrt import tensorrt_pipeline
    from lira_engine.ort.llm import OrtLlm

    stage, precision, dialect = argument.split(":")
    bundle = Bundle.open(work / "bundles" / "lira-2b")
    graph = work / "lowered" / f"{stage}.onnx"
    graph.parent.mkdir(exist_ok=True)
    save_graph(
        apply(read_graph(bundle.stage_file(stage)), tensorrt_pipeline(stage, precision, dialect)), graph
    )
    vectors = bundle.check_vectors(stage)
    if stage == "llm":
        with OrtLlm(graph) as llm:
            found = run_llm(llm, vectors)
    else:
        with OrtStage(stage, graph, bundle.manifest.stages[stage]) as runner:
            found = run_stage(runner, vectors.inputs)
    return {"errors": check_stage_outputs(stage, precision, found, vectors).errors}


def recipe_llm(work: Path, rows: str = "2101") -> dict[str, Any]:
    """Time the language model in fp32, with the 8-bit recipe and in 4 bits in turns: a prefill of `rows` rows
    and a decode step behind it."""
    from lira_calib.choosing.latency import llm_latencies
    from lira_engine.engines.recipe import NO_RECIPE, Form, StageRecipe, read_recipe

    bundle = Bundle.open(work / "bundles" / "lira-2b-outliers")
    eight = read_recipe(work / "recipes" / "lira-2b-outliers").stage("llm")
    four = StageRecipe({weight: Form("int4", 32) for weight in eight.forms})
    width = bundle.manifest.model.hidden_size
    embeds = np.random.default_rng(0).standard_normal((int(rows), width)).astype(np.float32)
    found = llm_latencies(bundle, [NO_RECIPE, eight, four], embeds, work, rounds=3)
    return dict(zip(("fp32", "w8a8", "int4/32"), map(asdict, found), strict=True))


def main() -> None:
    work, name, out, argument = sys.argv[1:]
    result = globals()[name](Path(work), *filter(None, [argument]))
    Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
