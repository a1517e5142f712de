"""The real TensorRT for RTX compiles the lowered graphs: ahead of time, without a GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import onnx_ir as ir
import pytest

from lira_engine import Bundle, LiraError
from lira_engine.build import build
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.recipe import Form, StageRecipe
from lira_engine.engines.usable import usable_build
from lira_engine.lowering.passes.sample_by_plugin import PLUGIN
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline
from lira_engine.lowering.weights import constant_matmuls
from lira_engine.targets import target_named
from lira_engine.trt.build import compile_in_process
from lira_engine.trt.compile import Job, Ranges
from lira_engine.trt.profiles import input_ranges, stage_profiles
from lira_export.checkpoint import Checkpoint
from lira_export.config import LlmConfig
from lira_export.graphs.llm import build_llm
from lira_export.llm_tensors import LlmTensors

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")


def compiled(model: ir.Model, profiles: list[Ranges], folder: Path, capability: str = "8.9") -> int:
    """Compile an engine; return the layers of its network."""
    ir.save(model, folder / "g.onnx", external_data="g.data", size_threshold_bytes=1024)
    job = Job("tensorrt-rtx", str(folder / "g.onnx"), str(folder / "g.engine"), profiles, [capability])
    layers = compile_in_process(job, lambda phase: None)["layers"]
    assert (folder / "g.engine").stat().st_size > 10_000
    return layers


def profiles_of(bundle: Bundle, stage: str) -> list[Ranges]:
    spec = bundle.manifest.stages[stage]
    return [
        {name: [list(shape) for shape in shapes] for name, shapes in input_ranges(spec, one).items()}
        for one in stage_profiles(bundle.manifest, stage)
    ]


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("model", ["nano", "golden"])
def test_every_stage_of_a_bundle_compiles(
    model: str,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The golden model has heads of 8 columns, an odd vocabulary, a cache shorter than a prefill chunk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "bundle"
    shutil.copytree(request.getfixturevalue(f"{model}_bundle"), root)
    options = target_named("tensorrt-rtx").given_options({"compute_capabilities": ("8.9",)}, "int4")
    folder = build(root, "tensorrt-rtx", precision, options)
    record = usable_build(Bundle.open(root), target_named("tensorrt-rtx"), precision)
    assert record.precisions == dict.fromkeys(STAGES, "fp16") | {"llm": precision}
    engines = {f"{stage}.engine" for stage in STAGES}
    assert record.files.keys() == engines | ({"llm.expected.npz"} if precision == "int4" else set())
    assert all((folder / name).stat().st_size > 10_000 for name in engines)
    assert all(peak > 50 for peak in record.peaks_mib.values())
    assert json.loads((folder / "build.json").read_text())["options"]["compute_capabilities"] == ["8.9"]


@pytest.mark.parametrize("dialect", ["cache_update", "decomposed"])
def test_the_parser_finds_the_sampling_plugin_by_its_version(
    nano_bundle: Path, dialect: str, tmp_path: Path
) -> None:
    """TensorRT for RTX has no such plugin: a creator that creates none takes its place."""
    import tensorrt_rtx as trt

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self, version: str) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = PLUGIN, version, ""
            self.field_names = trt.PluginFieldCollection([])

        def create_plugin(self, name: str, fields: object, phase: object) -> None:
            return None

    def read(there: str) -> str:
        log = trt.Logger(trt.Logger.ERROR)
        network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser, creator = trt.OnnxParser(network, log), Creator(there)
        registry = trt.get_plugin_registry()
        assert registry.register_creator(creator, "")
        try:
            assert not parser.parse_from_file(str(tmp_path / "g.onnx"))
        finally:
            registry.deregister_creator(creator)
        return "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))

    passes = tensorrt_pipeline("pixel_encoder", "fp16", dialect, plugin="2")
    model = apply(ir.load(Bundle.open(nano_bundle).stage_file("pixel_encoder")), passes)
    ir.save(model, tmp_path / "g.onnx", external_data="g.data", size_threshold_bytes=1024)
    assert "Plugin not found" in read("1")
    assert "Could not create the plugin" in read("2")


@pytest.mark.parametrize("stage", ["semantic_encoder", "sefe", "llm"])
def test_fp32_compiles(nano_bundle: Path, stage: str, tmp_path: Path) -> None:
    """There is no fused attention in fp32."""
    bundle = Bundle.open(nano_bundle)
    model = apply(ir.load(bundle.stage_file(stage)), tensorrt_pipeline(stage, "fp32", "cache_update"))
    assert compiled(model, profiles_of(bundle, stage), tmp_path) > 10


@pytest.mark.parametrize("stage", STAGES)
def test_the_older_dialect_compiles_too(nano_bundle: Path, stage: str, tmp_path: Path) -> None:
    """The graphs for TensorRT 10.3, compiled by TensorRT for RTX."""
    bundle = Bundle.open(nano_bundle)
    precision = "int4" if stage == "llm" else "fp16"
    model = apply(ir.load(bundle.stage_file(stage)), tensorrt_pipeline(stage, precision, "decomposed"))
    assert compiled(model, profiles_of(bundle, stage), tmp_path, "8.6") > 10


SMALL = LlmConfig(
    vocab_size=31,
    hidden_size=128,
    intermediate_size=192,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
)
VARIANTS = {
    "one_kv_head": replace(SMALL, num_kv_heads=1),
    "a_kv_head_per_head": replace(SMALL, num_kv_heads=8),
    "narrow_heads": replace(SMALL, num_heads=32, num_kv_heads=8),
    "two_heads": replace(SMALL, num_heads=2, num_kv_heads=1),
    "qwen2": replace(SMALL, family="qwen2", rms_norm_eps=1e-6, tie_word_embeddings=True),
}
CAPACITY = 320


@pytest.mark.parametrize("dialect", ["cache_update", "decomposed"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_language_model_compile(
    random_llm: Callable[[LlmConfig, int], ir.Model], name: str, dialect: str, tmp_path: Path
) -> None:
    config = VARIANTS[name]
    model = random_llm(config, CAPACITY)
    assert any(key.endswith("bias") for key in model.graph.initializers) == (name == "qwen2")
    assert compiled(apply(model, tensorrt_pipeline("llm", "int4", dialect)), llm_profiles(config), tmp_path)


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("dialect", ["cache_update", "decomposed"])
def test_positions_beyond_the_trained_length_compile(
    golden_checkpoint: Checkpoint, precision: str, dialect: str, tmp_path: Path
) -> None:
    """The golden language model with dynamic NTK scaling, trained for 64 positions."""
    config = replace(golden_checkpoint.config.llm, max_position_embeddings=64)
    model = build_llm(config, LlmTensors(golden_checkpoint), CAPACITY)
    assert any(node.op_type == "Pow" for node in model.graph)
    passes = tensorrt_pipeline("llm", precision, dialect)
    assert compiled(apply(model, passes), llm_profiles(config), tmp_path)


def llm_profiles(config: LlmConfig) -> list[Ranges]:
    return [
        {"inputs_embeds": [[1, rows, config.hidden_size] for rows in sizes], "logit_positions": [[1]] * 3}
        for sizes in ((1, 256, 256), (1, 1, 1))
    ]


@pytest.mark.parametrize("dialect", ["cache_update", "decomposed"])
@pytest.mark.parametrize("kind, capability", [("w8a8", "8.6"), ("fp8", "8.9")])
@pytest.mark.parametrize("stage", ["sefe", "llm"])
def test_operands_in_eight_bits_compile(
    nano_bundle: Path, stage: str, kind: str, capability: str, dialect: str, tmp_path: Path
) -> None:
    """Every matmul with a weight, behind Q/DQ. fp8 needs compute capability 8.9."""
    bundle = Bundle.open(nano_bundle)
    model = ir.load(bundle.stage_file(stage))
    recipe = StageRecipe({one.name: Form(kind, range=(-8.0, 8.0)) for one in constant_matmuls(model.graph)})
    model = apply(model, tensorrt_pipeline(stage, "mixed", dialect, recipe=recipe))
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) > 3
    assert compiled(model, profiles_of(bundle, stage), tmp_path, capability) > 10


@pytest.mark.parametrize("dialect", ["cache_update", "decomposed"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_of_all_forms_compiles(nano_bundle: Path, stage: str, dialect: str, tmp_path: Path) -> None:
    """In turn, with weights in fp16 between them; with parts of the LM head, weights that several matmuls
    read, and inputs that are filled up to whole blocks. The smoothing of channels leaves no trace."""
    bundle = Bundle.open(nano_bundle)
    model = ir.load(bundle.stage_file(stage))
    eight = [Form(kind, range=(-8.0, 6.0)) for kind in ("w8a8", "fp8")]
    forms = cycle([Form("int4", 32), eight[0], Form("int8", 64), eight[1], None, Form("int4", 128)])
    names = [one.name for one in constant_matmuls(model.graph)]
    recipe = StageRecipe({name: form for name, form in zip(names, forms, strict=False) if form is not None})
    model = apply(model, tensorrt_pipeline(stage, "mixed", dialect, lm_head_parts=2, recipe=recipe))
    stored = {value.dtype for value in model.graph.initializers.values()}
    assert {ir.DataType.INT4, ir.DataType.INT8} <= stored
    assert compiled(model, profiles_of(bundle, stage), tmp_path) > 10


def test_a_graph_that_the_compiler_refuses_is_a_one_line_error(tmp_path: Path) -> None:
    graph = tmp_path / "llm.onnx"
    graph.write_bytes(b"no graph")
    job = Job("tensorrt-rtx", str(graph), str(tmp_path / "llm.engine"), [], [])
    with pytest.raises(LiraError, match=r"llm: tensorrt-rtx .* cannot read the graph"):
        compile_in_process(job, lambda phase: None)
    assert not (tmp_path / "llm.engine").exists()
