"""The language model's graph: equal to the reference, valid ONNX, weights read one at a time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from lira_engine.errors import LiraError
from lira_engine.ort.llm import OrtLlm
from lira_export.config import LlmConfig
from lira_export.graphs.llm import build_llm, rotary_tables
from lira_export.model.language_model import LanguageModel, Rotary

CONFIG = LlmConfig(
    vocab_size=37,
    hidden_size=96,
    intermediate_size=40,
    num_layers=2,
    num_heads=6,
    num_kv_heads=3,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
)
CAPACITY = 24


def tensors_of(model: LanguageModel) -> dict[str, np.ndarray]:
    return {name.removesuffix(".weight"): p.detach().numpy() for name, p in model.named_parameters()}


@pytest.fixture
def reference() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(CONFIG).eval()


def test_equals_the_reference_with_three_kv_heads(reference: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "llm.onnx"
    ir.save(build_llm(CONFIG, tensors_of(reference), CAPACITY), path)
    embeds = np.random.default_rng(0).standard_normal((CAPACITY, CONFIG.hidden_size), dtype=np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(embeds)[None])
    with OrtLlm(path, threads=1) as llm:
        cache, start = llm.new_cache(), 0
        for count in (7, 1, 5, 1, 1, 9):
            found = llm.forward(embeds[start : start + count], cache, range(count))
            at = slice(start, start + count)
            np.testing.assert_allclose(found.logits, expected.logits[0, at].numpy(), atol=3e-6)
            np.testing.assert_allclose(found.hidden, expected.hidden_states[0, at].numpy(), atol=3e-6)
            start += count


def test_head_and_last_layer_run_at_the_asked_positions(reference: LanguageModel) -> None:
    model = build_llm(CONFIG, tensors_of(reference), CAPACITY)
    last = f"layers.{CONFIG.num_layers - 1}."
    sized = {node.name: node.outputs[0].shape for node in model.graph if node.op_type == "MatMul"}
    asked = [name for name, shape in sized.items() if shape is not None and shape[1] == "K"]
    assert asked == [*(f"{last}{part}.out/MatMul" for part in ("o", "gate", "up", "down")), "logits/MatMul"]


def test_a_layer_has_no_superfluous_operator(reference: LanguageModel) -> None:
    nodes = Counter(node.op_type for node in build_llm(CONFIG, tensors_of(reference), CAPACITY).graph)
    layers = CONFIG.num_layers
    assert nodes["MatMul"] == 7 * layers + 1
    assert nodes["CachedAttention"] == layers
    assert nodes["RMSNormalization"] == 2 * layers + 1
    assert nodes["Transpose"] == nodes["Reshape"] == 0


def test_biases_are_added_where_a_model_has_them(reference: LanguageModel, tmp_path: Path) -> None:
    """Qwen2 has biases on q, k and v."""
    tensors = tensors_of(reference)
    shift = np.linspace(-1, 1, CONFIG.hidden_size // 2, dtype=np.float32)
    biased = {**tensors, "layers.0.v_bias": shift}
    embeds = np.random.default_rng(1).standard_normal((3, CONFIG.hidden_size), dtype=np.float32)
    with torch.no_grad():
        value = reference.layers[0].v
        value.bias = torch.nn.Parameter(torch.from_numpy(shift))
        expected = reference(torch.from_numpy(embeds)[None]).logits[0].numpy()
    path = tmp_path / "llm.onnx"
    ir.save(build_llm(CONFIG, biased, CAPACITY), path)
    with OrtLlm(path, threads=1) as llm:
        np.testing.assert_allclose(llm.forward(embeds, llm.new_cache(), range(3)).logits, expected, atol=3e-6)


def test_graph_is_valid_onnx_with_named_dimensions(reference: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "llm.onnx"
    ir.save(build_llm(CONFIG, tensors_of(reference), CAPACITY), path)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    stated = {value.name: shape(value) for value in model.graph.value_info}
    found = {value.name: shape(value) for value in inferred.graph.value_info}
    assert stated["layers.0.attention"] == [1, "S", CONFIG.hidden_size]
    assert {"layers.0.attention", "layers.1.down.out"} <= found.keys()  # also through the function's body
    for name, sizes in found.items():
        assert len(sizes) == len(stated[name]), name
        fixed = [(a, b) for a, b in zip(stated[name], sizes, strict=True) if isinstance(b, int) and b]
        assert all(a == b for a, b in fixed), name


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]


class Counting(Mapping[str, np.ndarray]):
    """Tensors that record when they are read."""

    def __init__(self, tensors: dict[str, np.ndarray], read: Callable[[str], None]) -> None:
        self.tensors, self.read = tensors, read

    def __getitem__(self, name: str) -> np.ndarray:
        self.read(name)
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_weights_are_read_when_the_graph_is_saved(reference: LanguageModel, tmp_path: Path) -> None:
    reads: list[str] = []
    tensors = tensors_of(reference)
    model = build_llm(CONFIG, Counting(tensors, reads.append), CAPACITY)
    assert reads == []
    ir.save(model, tmp_path / "llm.onnx", external_data="llm.onnx.data")
    assert set(reads) == tensors.keys() - {"tok_embeddings"}


def test_refuses_a_context_beyond_the_trained_positions(reference: LanguageModel) -> None:
    config = dataclasses.replace(CONFIG, max_position_embeddings=CAPACITY)
    with pytest.raises(LiraError, match="context length 25: expected 1 to 24"):
        build_llm(config, tensors_of(reference), CAPACITY + 1)


def test_says_which_tensor_is_missing_or_misshapen(reference: LanguageModel) -> None:
    tensors = tensors_of(reference)
    with pytest.raises(ValueError, match=r"layers\.1\.up is missing"):
        build_llm(CONFIG, {k: v for k, v in tensors.items() if k != "layers.1.up"}, CAPACITY)
    tensors["layers.1.up"] = tensors["layers.1.up"].T
    weight = build_llm(CONFIG, tensors, CAPACITY).graph.initializers["layers.1.up"].const_value
    assert weight is not None
    with pytest.raises(ValueError, match=r"layers\.1\.up: found shape \[96, 40\], expected \[40, 96\]"):
        weight.numpy()


def test_rotary_tables_equal_upstreams() -> None:
    cos, sin = rotary_tables(CONFIG, 4096)
    expected = Rotary(CONFIG).tables(torch.arange(4096))
    half = CONFIG.head_dim // 2
    np.testing.assert_allclose(cos, expected[0][:, :half], atol=2e-7)
    np.testing.assert_allclose(sin, expected[1][:, :half], atol=2e-7)
