"""One case at LIRA-2B's true shapes: a layer of its language model, its vocabulary and its context of 4,096,
from the torch reference through the portable graph to the CPU engines. `benchmarks/true_size/run.py`
has all layers and the other stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.llm import OrtLlm
from lira_export.config import LlmConfig
from lira_export.graphs.llm import build_llm
from lira_export.model.language_model import LanguageModel
from lira_export.synthetic.presets import preset

CAPACITY, ROWS = 4096, 48


@pytest.fixture(scope="module")
def config() -> LlmConfig:
    published = preset("lira-2b").config.llm
    sizes = (published.hidden_size, published.intermediate_size, published.num_kv_heads, published.vocab_size)
    assert sizes == (2048, 8192, 8, 92559)
    return replace(published, num_layers=1)


@pytest.fixture(scope="module")
def reference(config: LlmConfig) -> LanguageModel:
    """Return a model with weights as large as trained ones: about one over the root of their inputs."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LanguageModel(config)
    model = model.to_empty(device="cpu")
    for name, tensor in model.named_parameters():
        if tensor.ndim == 1:
            torch.nn.init.ones_(tensor)
        elif "embed" not in name:  # the table is not read
            torch.nn.init.normal_(tensor, std=tensor.shape[1] ** -0.5)
    return model.eval()


@pytest.fixture(scope="module")
def portable(config: LlmConfig, reference: LanguageModel) -> Iterator[Path]:
    weights = {name.removesuffix(".weight"): t.detach().numpy() for name, t in reference.named_parameters()}
    with TemporaryDirectory() as folder:  # a gigabyte, gone with this module
        path = Path(folder) / "llm.onnx"
        ir.save(build_llm(config, weights, CAPACITY), path, external_data="llm.onnx.data")
        yield path


@pytest.fixture(scope="module", params=["fp32", "int4"])
def engine(request: pytest.FixtureRequest, portable: Path) -> Iterator[tuple[str, OrtLlm]]:
    path = portable.with_name(f"{request.param}.onnx")
    model = apply(ir.load(portable), cpu_pipeline("llm", request.param))
    ir.save(model, path, external_data=f"{path.name}.data")
    with OrtLlm(path) as llm:
        yield request.param, llm
    path.with_name(f"{path.name}.data").unlink()


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the smallest cosine of all rows."""
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(((found * expected).sum(-1) / norms).min())


def test_engines_equal_the_reference(
    config: LlmConfig, reference: LanguageModel, engine: tuple[str, OrtLlm]
) -> None:
    precision, llm = engine
    embeds = np.random.default_rng(1).standard_normal((ROWS, config.hidden_size), dtype=np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(embeds)[None])
    cache = llm.new_cache()
    assert llm.capacity == CAPACITY
    first = llm.forward(embeds[:-1], cache, range(ROWS - 1))
    last = llm.forward(embeds[-1:], cache)
    logits = np.concatenate([first.logits, last.logits])
    least = {"fp32": 0.999999, "int4": 0.98}[precision]
    assert cosine(logits, expected.logits[0].numpy()) > least
    if precision == "fp32":
        np.testing.assert_allclose(logits, expected.logits[0].numpy(), rtol=0, atol=2e-5)


def test_int4_weights_take_a_seventh_of_the_bytes(engine: tuple[str, OrtLlm], portable: Path) -> None:
    precision, _ = engine
    built = portable.with_name(f"{precision}.onnx")
    wide, narrow = (path.with_name(f"{path.name}.data").stat().st_size for path in (portable, built))
    assert narrow / wide < {"fp32": 1.01, "int4": 0.17}[precision]
    graph = onnx.load(built, load_external_data=False).graph
    operators = {node.op_type for node in graph.node}
    assert "GroupQueryAttention" in operators
    assert ("MatMulNBits" in operators) == (precision == "int4")
