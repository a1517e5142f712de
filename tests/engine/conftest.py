"""A bundle of hand-made graphs with random weights, written in a few milliseconds."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lira_engine import doctor
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import (
    FileEntry,
    Manifest,
    ModelSpec,
    PixelSpec,
    PreprocessingSpec,
    PromptSpec,
    RegionSpec,
    StageSpec,
    TaskSpec,
    TensorSpec,
    TileSpec,
    TokenSpec,
)
from lira_engine.cuda import opening as cuda_opening
from lira_engine.engines import setting
from lira_engine.main import main
from lira_engine.ort import llm as ort_llm
from lira_engine.ort import on_device
from lira_engine.ort import stage as ort_stage
from lira_engine.ort.session import open_session
from lira_engine.system import machine
from lira_engine.trt import readiness
from lira_export.config import LlmConfig
from lira_export.graphs.llm import build_llm

C, V, T_SIZE, CELLS, P = 8, 20, 4, 2, 32
MODEL = ModelSpec(
    family="internlm2", hidden_size=C, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4,
    intermediate_size=12, vocab_size=V, context_length=16, rope_theta=10000.0, rms_norm_eps=1e-5,
    tile_size=T_SIZE, tokens_per_tile=CELLS, pixel_size=P, num_queries=3, num_cells=CELLS, feat_channels=4,
    mask_size=8,
)  # fmt: skip
PREPROCESSING = PreprocessingSpec(
    TileSpec(T_SIZE, (0.5,) * 3, (0.25,) * 3, 1, 6, True),
    PixelSpec(P, (0.5,) * 3, (0.25,) * 3, (1, 2, 3)),
    RegionSpec(0.3),
)
TOKENS = TokenSpec(bos=1, eos=(2,), seg=14, image_id=19, p=15, p_end=16, region_suffix=(5, 6))
PROMPTS = PromptSpec(
    "system", "<image>\n{question}", False, {"vqa": TaskSpec("{expression}", 9, ("<|im_end|>",))}
)
FLOAT_STAGES: dict[str, tuple[dict[str, list[int | str]], dict[str, list[int]]]] = {
    "pixel_encoder": (
        {"pixel_values": [1, 3, P, P]},
        {
            "pixel_features": [1, CELLS, 12],
            "queries": [1, 3, 8],
            "query_valid": [1, 3],
            "mask_features": [1, 4, 8, 8],
        },
    ),
    "sefe": (
        {"features": [1, "M", C], "pixel_features": [1, CELLS, 12], "queries": [1, 3, 8]},
        {"pixel_tokens": [1, CELLS, C], "query_tokens": [1, 3, C]},
    ),
    "pixel_decoder": ({"hidden_states": [1, C], "mask_features": [1, 4, 8, 8]}, {"mask_logits": [1, 8, 8]}),
}


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, for this test only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that `bundle_path` copies; tests only read it."""
    root = tmp_path_factory.mktemp("made") / "tiny"
    (root / "checks").mkdir(parents=True)
    rng = np.random.default_rng(0)
    models = {"semantic_encoder": _semantic_encoder(rng), "llm": _llm()}
    models |= {name: _sums(name, rng, *tensors) for name, tensors in FLOAT_STAGES.items()}
    stages = {}
    for name, model in models.items():
        onnx.checker.check_model(model, full_check=True)
        options: dict[str, Any] = (
            {"location": f"{name}.onnx.data", "size_threshold": 64} if name == "llm" else {}
        )
        onnx.save(model, root / f"{name}.onnx", save_as_external_data=bool(options), **options)
        stages[name] = StageSpec(
            f"{name}.onnx", f"checks/{name}.npz", _specs(model.graph.input), _specs(model.graph.output)
        )
        _write_checks(root, name, stages[name], rng)
    np.save(root / "embeddings.npy", rng.standard_normal((V, C), np.float32))
    np.save(root / "separators.npy", rng.standard_normal((2, C), np.float32))
    (root / "tokenizer.json").write_text("{}")
    files = {
        path.relative_to(root).as_posix(): FileEntry(sha256_of(path), path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest("tiny", "0.1.0", {}, MODEL, PREPROCESSING, TOKENS, PROMPTS, stages, files)
    (root / "lira.json").write_text(manifest.dumps())
    return root


@pytest.fixture
def bundle_path(made_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    target = tmp_path / "bundle"
    for source in made_bundle.rglob("*"):
        copy = target / source.relative_to(made_bundle)
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    return target


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are cached at once, even those of files that changed just now."""
    monkeypatch.setattr("lira_engine.bundle.integrity._SETTLED_NS", -(10**12))


@pytest.fixture
def edit_manifest() -> Any:
    """edit(bundle, change): write lira.json again after `change` edited its parsed JSON in place."""

    def edit(bundle: Path, change: Any) -> None:
        data = json.loads((bundle / "lira.json").read_text())
        change(data)
        (bundle / "lira.json").write_text(json.dumps(data))

    return edit


@pytest.fixture(scope="session")
def random_llm() -> Callable[[LlmConfig, int], ir.Model]:
    """random_llm(config, context_length): a language model's portable graph with random weights, the same
    each time."""
    return lambda config, context_length: build_llm(config, _RandomWeights(config), context_length)


@pytest.fixture(scope="session")
def memory() -> Callable[[Any], np.ndarray]:
    """memory(value): an array that shares the CPU memory of an ONNX Runtime tensor."""

    def view(value: Any) -> np.ndarray:
        dtype = np.dtype({"tensor(float)": np.float32, "tensor(float16)": np.float16}[value.data_type()])
        size = int(np.prod(value.shape())) * dtype.itemsize
        return np.frombuffer((ctypes.c_byte * size).from_address(value.data_ptr()), dtype).reshape(
            value.shape()
        )

    return view


@pytest.fixture
def printed_by(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """printed_by(*arguments): the output of `lira-edge ARGUMENTS`, which must succeed."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        printed = capsys.readouterr()
        assert caught.value.code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """record(answers, release, arch, packages...): replace what a machine's programs print, the line of its
    L4T file, its architecture, and its installed packages (name=version; TensorRT by its module's name)."""

    def record(
        answers: dict[str, list[str]], release: str = "", arch: str = "x86_64", **packages: str
    ) -> None:
        monkeypatch.setattr(
            machine, "_answer", lambda command: next((answers[a] for a in command if a in answers), [])
        )
        board = tmp_path / "nv_tegra_release"
        if release:
            board.write_text(release + "\n")
        monkeypatch.setattr(machine, "_L4T", board)
        model = tmp_path / "model"
        model.write_bytes(b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
        monkeypatch.setattr(machine, "_MODEL", model)
        compatible = tmp_path / "compatible"
        compatible.write_bytes(b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0")
        monkeypatch.setattr(machine, "_COMPATIBLE", compatible)
        monkeypatch.setattr(platform, "machine", lambda: arch)
        for user in (doctor, readiness, cuda_opening, setting):
            monkeypatch.setattr(user, "installed", lambda package: packages.get(package.replace("-", "_")))
        runtimes = tuple(one.replace("_", "-") for one in packages if one.startswith("onnxruntime"))
        monkeypatch.setattr(doctor, "onnxruntimes", lambda: runtimes)

        def module(name: str) -> ModuleType:
            if name not in packages:
                raise ImportError(f"No module named '{name}'")
            found = ModuleType(name)
            found.__version__ = packages[name]  # type: ignore[attr-defined]
            return found

        monkeypatch.setattr(importlib, "import_module", module)

    return record


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """plant(node, kind=..., ...): make a node wrong on the device (falsify.Fault), wherever ONNX Runtime
    stands for it."""
    faults: list[Any] = []

    def opened(path: Path, *arguments: Any, **options: Any) -> Any:
        false = falsify.falsify(path, faults)
        try:
            return open_session(false, *arguments, **options)
        finally:
            if false != path:
                false.unlink()

    for user in (on_device, ort_stage, ort_llm):
        monkeypatch.setattr(user, "open_session", opened)
    return lambda node, **how: faults.append(falsify.Fault(node, **how))


def _beside(name: str) -> Any:
    """Import a file beside this one: pytest does not put test folders on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


falsify = _beside("falsify")


def _specs(values: Any) -> dict[str, TensorSpec]:
    return {
        value.name: TensorSpec(
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    }


def _model(
    name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any]
) -> Any:
    initializers = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _semantic_encoder(rng: np.random.Generator) -> Any:
    """[T,3,4,4] -> [T,2,24] -> [T,2,C]"""
    weights = {"shape": np.array([0, CELLS, 24]), "w": rng.standard_normal((24, C), np.float32)}
    return _model(
        "semantic_encoder",
        [
            helper.make_node("Reshape", ["pixel_values", "shape"], ["cells"]),
            helper.make_node("MatMul", ["cells", "w"], ["features"]),
        ],
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["T", 3, T_SIZE, T_SIZE])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["T", CELLS, C])],
        weights,
    )


def _sums(name: str, rng: np.random.Generator, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
    """Return a graph whose outputs are a constant table each, plus the sum of all inputs."""
    nodes = [helper.make_node("ReduceSum", [key], [f"{key}.sum"], keepdims=0) for key in inputs]
    nodes.append(helper.make_node("Sum", [f"{key}.sum" for key in inputs], ["total"]))
    operators = {key: "Less" if key == "query_valid" else "Add" for key in outputs}
    nodes += [
        helper.make_node(operator, [f"{key}.table", "total"], [key]) for key, operator in operators.items()
    ]
    return _model(
        name,
        nodes,
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in inputs.items()],
        [
            helper.make_tensor_value_info(
                key, TensorProto.BOOL if operators[key] == "Less" else TensorProto.FLOAT, shape
            )
            for key, shape in outputs.items()
        ],
        {f"{key}.table": rng.standard_normal(shape, np.float32) for key, shape in outputs.items()},
    )


def _llm() -> Any:
    m = MODEL
    names = {field.name for field in dataclasses.fields(LlmConfig)}
    sizes = {key: value for key, value in vars(m).items() if key in names}
    config = LlmConfig(**sizes, max_position_embeddings=64)
    return ir.serde.serialize_model(build_llm(config, _RandomWeights(config), m.context_length))


class _RandomWeights(dict[str, np.ndarray]):
    """Random weights of every name that a language model's graph reads."""

    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.config = config

    def __contains__(self, name: object) -> bool:
        biased = (".q_bias", ".k_bias", ".v_bias") if self.config.qkv_bias else ()
        return "bias" not in str(name) or str(name).endswith(biased)

    def __missing__(self, name: str) -> np.ndarray:
        c, part = self.config, name.split(".")[-1].removesuffix("_bias")
        kv, wide = c.num_kv_heads * c.head_dim, c.intermediate_size
        rows = {"k": kv, "v": kv, "gate": wide, "up": wide, "lm_head": c.vocab_size}.get(part, c.hidden_size)
        vector = name.endswith(("norm", "bias"))
        shape = (rows,) if vector else (rows, wide if part == "down" else c.hidden_size)
        random = np.random.default_rng(list(name.encode()))  # the same in any order of reads
        self[name] = random.uniform(-0.2, 0.2, shape).astype(np.float32)
        return self[name]


def _write_checks(root: Path, name: str, stage: StageSpec, rng: np.random.Generator) -> None:
    sizes = {"T": 2, "M": 5, "S": 3, "K": 2}
    feeds: dict[str, np.ndarray] = {}
    for key, spec in stage.inputs.items():
        shape = [sizes[d] if isinstance(d, str) else d for d in spec.shape]
        feeds[key] = rng.standard_normal(shape, np.float32)
    if name == "llm":
        feeds |= {"position": np.array([4]), "logit_positions": np.array([0, 2])}
        for key in feeds:
            if "cache" in key:
                feeds[key][:, :, 4:] = 0
    # Not ONNX Runtime: its last version for Python 3.10 cannot run the language model's portable graph.
    evaluator = ReferenceEvaluator(onnx.load(root / stage.file))
    found = dict(zip(stage.outputs, evaluator.run(list(stage.outputs), feeds), strict=True))
    arrays = {f"in.{key}": array for key, array in feeds.items()}
    np.savez(root / stage.check, **arrays, **{f"out.{key}": array for key, array in found.items()})
