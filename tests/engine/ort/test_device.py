"""Bindings, copies, placement and CUDA's graphs, with the CPU provider in the place of the CUDA provider: all
devices share one code path."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lira_engine import Bundle, LiraError
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.accuracy import rms_error
from lira_engine.engines.recipe import Recipe
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.quantization import Quantization
from lira_engine.ort.device import CPU, PROVIDERS, Device, cuda_device
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.options import CudaOptions
from lira_engine.ort.placement import RanNode, check_placement, placement, placement_of_run, ran_nodes
from lira_engine.ort.session import open_session
from lira_engine.ort.stage import OrtStage
from lira_engine.targets import TARGETS
from lira_export.config import LlmConfig

CONFIG = LlmConfig(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2,
    rope_theta=1e4, rms_norm_eps=1e-5,
)  # fmt: skip
CAPACITY = 24
RandomLlm = Callable[[LlmConfig, int], ir.Model]
CUDA = Device(("CUDAExecutionProvider",), "cuda")


@pytest.fixture(scope="module")
def portable(random_llm: RandomLlm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "llm.onnx"
    ir.save(random_llm(CONFIG, CAPACITY), path)
    return path


def lowered(portable: Path, precision: str, folder: Path) -> Path:
    path = folder / f"{precision}.onnx"
    ir.save(apply(ir.load(portable), cuda_pipeline("llm", precision, "cuda", Quantization())), path)
    return path


def embeds(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, CONFIG.hidden_size), dtype=np.float32)


def test_cuda_is_asked_for_no_long_searches() -> None:
    """An exhaustive one takes the first run of a convolution half a minute."""
    ((name, options), (last, _)) = CUDA.session_providers()
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["arena_extend_strategy"] == "kSameAsRequested"


class Recorder:
    """An IO binding that counts its calls."""

    def __init__(self, binding: Any) -> None:
        self.binding, self.calls = binding, Counter[tuple[str, str]]()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.binding, name)
        if not name.startswith("bind_"):
            return method

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[(name, args[0])] += 1
            return method(*args, **kwargs)

        return counted


def test_a_pass_binds_and_copies_no_cache(portable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches are bound once, at creation. A pass binds five small tensors: a device with a memory of its own
    copies only these."""
    recorded: list[Recorder] = []
    original = onnxruntime.InferenceSession.io_binding

    def io_binding(session: Any) -> Recorder:
        recorded.append(Recorder(original(session)))
        return recorded[-1]

    def run(session: Any, binding: Recorder, options: Any = None) -> None:
        session._sess.run_with_iobinding(binding.binding._iobinding, options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "io_binding", io_binding)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", run)
    with OrtLlm(portable, threads=1) as llm:
        cache = llm.new_cache()
        places = {name: rows.data_ptr() for name, rows in cache.rows.items()}
        (binding,) = recorded
        once = {("bind_ortvalue_input", name) for name in places}
        once |= {("bind_ortvalue_output", name.replace("_cache.", "_cache_out.")) for name in places}
        assert len(places) == 2 * CONFIG.num_layers and binding.calls == dict.fromkeys(once, 1)
        for step, rows in enumerate((5, 1, 1, 3), 1):
            llm.forward(embeds(rows, step), cache)
            small = {("bind_input", name) for name in ("inputs_embeds", "position", "logit_positions")}
            small |= {("bind_output", name) for name in ("logits", "hidden_states")}
            assert binding.calls == dict.fromkeys(once, 1) | dict.fromkeys(small, step)
            assert {name: rows.data_ptr() for name, rows in cache.rows.items()} == places


@pytest.mark.parametrize(
    ("precision", "operators", "dtype"),
    [
        ("fp32", {"ScatterElements": 4, "MatMul": 19}, "tensor(float)"),
        ("fp16", {"GroupQueryAttention": 2, "MatMul": 15}, "tensor(float16)"),
        ("int4", {"GroupQueryAttention": 2, "MatMulNBits": 11, "MatMul": 0}, "tensor(float16)"),
    ],
)
@pytest.mark.portable
def test_the_language_model_for_cuda_matches_the_portable_one(
    portable: Path, tmp_path: Path, precision: str, operators: dict[str, int], dtype: str
) -> None:
    """The CUDA provider's graph on the CPU provider: prefill, a chunk, decode steps, a truncated cache."""
    path = lowered(portable, precision, tmp_path)
    model = ir.load(path)
    assert model.opset_imports[""] <= 21 and model.ir_version <= 10 and not model.functions
    found = Counter(node.op_type for node in model.graph)
    assert {name: found[name] for name in operators} == operators
    for node in model.graph:  # CUDA's kernels for these two only take fp16
        if node.op_type in ("GroupQueryAttention", "MatMulNBits"):
            assert node.outputs[0].dtype == ir.DataType.FLOAT16
    with OrtLlm(path, threads=1) as llm, OrtLlm(portable, threads=1) as reference:
        session = llm._session
        assert session is not None
        types = {tensor.name: tensor.type for tensor in (*session.get_inputs(), *session.get_outputs())}
        assert {t for n, t in types.items() if "_cache" in n} == {dtype}
        assert types["inputs_embeds"] == types["logits"] == types["hidden_states"] == "tensor(float)"
        caches = llm.new_cache(), reference.new_cache()
        limit = {"fp32": 1e-5, "fp16": 5e-3, "int4": 0.3}[precision]
        for rows in (6, 4, 1, 1):
            ours, theirs = (
                runner.forward(embeds(rows, rows), cache, (0, -1))
                for runner, cache in zip((llm, reference), caches, strict=True)
            )
            assert rms_error(ours.logits, theirs.logits) < limit
            assert rms_error(ours.hidden, theirs.hidden) < limit
            assert ours.logits.dtype == np.float32
        for cache in caches:
            cache.truncate(6)
        ours, theirs = llm.forward(embeds(2, 9), caches[0]), reference.forward(embeds(2, 9), caches[1])
        assert rms_error(ours.logits, theirs.logits) < limit


def test_a_pass_writes_only_its_own_rows(
    portable: Path, tmp_path: Path, memory: Callable[[Any], np.ndarray]
) -> None:
    """A copied fp16 cache would lose the marks behind the written rows."""
    with OrtLlm(lowered(portable, "fp16", tmp_path), threads=1) as llm:
        cache = llm.new_cache()
        llm.forward(embeds(3), cache)
        rows = {name: memory(value) for name, value in cache.rows.items()}
        for array in rows.values():
            array[:, :, 5:] = 7
        before = {name: array.copy() for name, array in rows.items()}
        llm.forward(embeds(2, 1), cache)
        for name, array in rows.items():
            np.testing.assert_array_equal(array[:, :, :3], before[name][:, :, :3])
            assert (array[:, :, 3:5] != before[name][:, :, 3:5]).any()
            assert (array[:, :, 5:] == 7).all()


def test_a_stage_equals_a_plain_session_run(made_bundle: Path) -> None:
    bundle = Bundle.open(made_bundle)
    for stage in ("semantic_encoder", "pixel_encoder", "sefe", "pixel_decoder"):
        file, feeds = bundle.stage_file(stage), bundle.check_vectors(stage).inputs
        plain = open_session(file, threads=1).run(None, feeds)
        with OrtStage(stage, file, bundle.manifest.stages[stage], threads=1, device=CPU) as runner:
            strided = {name: np.asfortranarray(array) for name, array in feeds.items()}
            found = runner.run(strided)
        assert list(found) == list(bundle.manifest.stages[stage].outputs)
        for ours, theirs in zip(found.values(), plain, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_profile_tells_where_nodes_ran(
    portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile of a CPU session, checked against the CPU and against a GPU."""
    path = lowered(portable, "fp32", tmp_path)
    feeds: dict[str, np.ndarray] = {
        "inputs_embeds": embeds(3)[None],
        "position": np.zeros(1, np.int64),
        "logit_positions": np.array([2]),
    }
    for kind in ("key", "value"):
        for i in range(CONFIG.num_layers):
            feeds[f"{kind}_cache.{i}"] = np.zeros((1, 2, CAPACITY, CONFIG.head_dim), np.float32)
    here = placement_of_run(path, CPU, feeds)
    assert set(here.nodes) == {"CPUExecutionProvider"} and here.nodes["CPUExecutionProvider"] > 40
    assert (here.sizes_on_cpu, here.copies, here.elsewhere) == (0, 0, ())
    check_placement("llm", here, CPU)
    assert here.text().endswith(" CPU")

    def on_cpu(path: Path, device: Device, profile: Path) -> onnxruntime.InferenceSession:
        return open_session(path, profile=profile)

    monkeypatch.setattr("lira_engine.ort.session.open_session", on_cpu)
    judged = placement_of_run(path, CUDA, feeds)
    assert judged.nodes == {"CPUExecutionProvider": len(judged.elsewhere)}
    # Any device leaves lengths and positions to the CPU; keys, values and matmuls must not run there.
    assert 2 < judged.sizes_on_cpu < 20
    assert judged.sizes_on_cpu + len(judged.elsewhere) == here.nodes["CPUExecutionProvider"]
    assert {"MatMul", "ScatterElements", "Softmax"} < {node.op for node in judged.elsewhere}
    with pytest.raises(LiraError, match=r"nodes of llm ran on CPUExecutionProvider, expected CUDA"):
        check_placement("llm", judged, CUDA)


NODES = [
    RanNode("a", "MatMul", "CUDAExecutionProvider", (("float", (1, 8)),)),
    RanNode("b", "Shape", "CPUExecutionProvider", (("int64", (3,)),)),
    RanNode("c", "MemcpyToHost", "CUDAExecutionProvider", (("float", (1, 8)),)),
    RanNode("d", "NonZero", "CPUExecutionProvider", (("int64", (2, 5000)),)),
    RanNode("e", "GridSample", "CPUExecutionProvider", (("float", (1, 8, 4, 4)),)),
    RanNode("f", "Unknown", "CPUExecutionProvider", ()),
    RanNode("g", "Split", "CPUExecutionProvider", (("int64", (1,)), ("float", (1,)))),
]


def test_a_fallback_is_an_error() -> None:
    """Only arithmetic on a few integers may run on the CPU."""
    found = placement(NODES, CUDA)
    assert found.nodes == {"CUDAExecutionProvider": 1, "CPUExecutionProvider": 4}
    assert (found.sizes_on_cpu, found.copies) == (1, 1)
    assert [node.name for node in found.elsewhere] == ["d", "e", "f", "g"]
    assert found.text() == "4 CPU, 1 CUDA, 1 on sizes, 1 copies"
    with pytest.raises(
        LiraError,
        match=r"4 nodes of sefe ran on CPUExecutionProvider, expected CUDAExecutionProvider: NonZero d; "
        r"GridSample e; Unknown f and 1 more; build with --allow-fallback",
    ):
        check_placement("sefe", found, CUDA)
    check_placement("sefe", found, dataclasses.replace(CUDA, allow_fallback=True))
    check_placement("sefe", placement(NODES[:3], CUDA), CUDA)


def test_a_profile_lists_each_node_once() -> None:
    shapes = [{"float": [2, 3]}]
    facts = {"op_name": "MatMul", "provider": "P", "node_index": "3", "output_type_shape": shapes}
    node = {"cat": "Node", "name": "x/MatMul_kernel_time", "args": facts}
    others = [{"cat": "Session", "name": "model_run"}, {"cat": "Node", "name": "x_fence_before", "args": {}}]
    assert list(ran_nodes([*others, node, node])) == [
        RanNode("x/MatMul", "MatMul", "P", (("float", (2, 3)),))
    ]


def test_a_missing_provider_names_its_install_command() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    for provider, wanted in PROVIDERS.items():
        names = wanted if provider == "cuda" else f"{wanted} and CUDAExecutionProvider"
        with pytest.raises(
            LiraError,
            match=rf"target cuda needs {names}, but onnxruntime .* has .*CPUExecutionProvider: "
            r"pip uninstall -y onnxruntime, then pip install 'lira-edge\[cuda\]'",
        ):
            cuda_device("fp16", provider)
    with pytest.raises(LiraError, match="provider 'dml': expected cuda, tensorrt, nv-tensorrt-rtx"):
        cuda_device("fp16", "dml")


def test_a_gpu_session_gets_its_providers_in_order(monkeypatch: pytest.MonkeyPatch, portable: Path) -> None:
    everything = [*PROVIDERS.values(), "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
    given = cuda_device("fp16").session_providers()
    assert [name for name, _ in given] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    tensorrt = cuda_device("fp16", "tensorrt", allow_fallback=True)
    assert tensorrt.providers == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert tensorrt.allow_fallback and tensorrt.memory == "cuda"
    # TensorRT does not update a cache in place.
    assert tensorrt.for_cache == Device(("CUDAExecutionProvider",), "cuda", True, tf32=True)
    assert CPU.for_cache is CPU
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything[1:])
    with pytest.raises(LiraError, match="needs CUDAExecutionProvider"):
        cuda_device("fp16", "tensorrt")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(LiraError, match=r"needs TensorrtExecutionProvider.*take --provider cuda"):
        cuda_device("fp16", "tensorrt")


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "1"), ("int4", "1"), ("mixed", "1")])
def test_only_fp32_builds_give_up_tensor_cores(
    made_bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: str, tf32: str
) -> None:
    """use_tf32=0 takes them from fp16 convolutions, too. As it is built, so it is opened and placed."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    bundle, target, options = Bundle.open(made_bundle), TARGETS["cuda"], CudaOptions()
    recorded = target.recorded_options(options, precision)
    if precision == "mixed":
        recipe = Recipe("", {}, {})
        builder = target.recipe_builder(bundle, recipe, options, None, lambda *_: None)
    else:
        builder = target.builder(bundle, precision, options, None, lambda *_: None)
    placed: list[Device] = []

    def check(bundle: Any, stage: str, file: Path, precision: str, device: Device) -> Any:
        placed.append(device)
        return placement([], device)

    monkeypatch.setattr("lira_engine.ort.build_cuda.checked_placement", check)
    record = SimpleNamespace(
        precision=precision, options=recorded, precisions=dict.fromkeys(STAGES, precision)
    )
    target.placement(bundle, record, lambda stage: None)
    devices = [builder.opener.device, target.opener(bundle, precision, recorded, None).device, *placed]
    assert len(devices) == 2 + len(STAGES)
    for device in (*devices, *(one.for_cache for one in devices)):
        assert dict(device.session_providers())["CUDAExecutionProvider"]["use_tf32"] == tf32


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_an_error(portable: Path) -> None:
    """ONNX Runtime itself would warn, and run everything on the CPU."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    remedy = r"(driver is missing .*: install it|lira-edge doctor)"
    with pytest.raises(LiraError, match=rf"could not start CUDAExecutionProvider: .*{remedy}"):
        open_session(portable, threads=1, device=CUDA)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_stages_for_cuda_match_their_check_vectors(
    nano_bundle: Path, tmp_path: Path, provider: str, precision: str
) -> None:
    """lira-nano's stages as lowered for the CUDA provider, or for the TensorRT provider."""
    bundle = Bundle.open(nano_bundle)
    for stage in ("semantic_encoder", "pixel_encoder", "sefe", "pixel_decoder"):
        path = tmp_path / f"{stage}.onnx"
        model = apply(ir.load(bundle.stage_file(stage)), cuda_pipeline(stage, precision, provider))
        operators = {(node.domain, node.op_type) for node in model.graph}
        if provider == "tensorrt":
            assert {domain for domain, _ in operators} == {""}
            assert not {"GridSample", "Attention"} & {name for _, name in operators}
        ir.save(model, path, external_data=f"{stage}.data")
        vectors = bundle.check_vectors(stage)
        with OrtStage(stage, path, bundle.manifest.stages[stage], threads=1) as runner:
            found = runner.run(vectors.inputs)
        for name, array in vectors.outputs.items():
            if np.issubdtype(array.dtype, np.floating):
                assert rms_error(found[name], array) < (1e-4 if precision == "fp32" else 3e-2), name


def test_an_unknown_precision_is_refused() -> None:
    for stage, precision in (("sefe", "int4"), ("llm", "int8"), ("x", "fp32")):
        with pytest.raises(LiraError, match=f"nothing lowers {stage} {precision} for CUDA"):
            cuda_pipeline(stage, precision)
