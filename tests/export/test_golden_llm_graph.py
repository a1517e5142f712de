"""The written graph of the language model against arrays recorded from upstream, portable and lowered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.llm import OrtLlm
from lira_export.checkpoint import Checkpoint
from lira_export.config import LiraConfig
from lira_export.graphs.llm import build_llm
from lira_export.llm_tensors import LlmTensors

TOLERANCE = 2e-4
"""The golden README's tolerance for the language model: fp32 sums in another order."""
PARTS = ("inputs_embeds", "decode_ids", "chunk_embeds", "decode2_ids")
"""The arrays of a recorded session, in order."""
Recorded = Mapping[str, np.ndarray]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        with np.load(metafunc.config.getoption("--golden") / "components" / "llm.npz") as data:
            metafunc.parametrize("case", range(cases(data)))


@pytest.fixture(scope="module")
def recorded(golden: Path) -> Recorded:
    with np.load(golden / "components" / "llm.npz", allow_pickle=False) as data:
        return dict(data)


@pytest.fixture(scope="module")
def portable(golden: Path, recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LiraConfig.from_dict(json.loads((golden / "config.json").read_text()), "golden", golden)
    tensors = LlmTensors(Checkpoint.open(golden / "split", config))
    path = tmp_path_factory.mktemp("llm") / "llm.onnx"
    capacity = max(rows(recorded, case) for case in range(cases(recorded)))
    ir.save(build_llm(config.llm, tensors, capacity), path)
    return path


@pytest.fixture(scope="module", params=["portable", "cpu"])
def llm(request: pytest.FixtureRequest, portable: Path) -> Iterator[OrtLlm]:
    path = portable
    if request.param != "portable":
        path = portable.with_name("lowered.onnx")
        ir.save(apply(ir.load(portable), cpu_pipeline("llm")), path)
    with OrtLlm(path, threads=1) as runner:
        yield runner


def test_golden_prefill_decode_chunk_decode(llm: OrtLlm, recorded: Recorded, case: int) -> None:
    """The recorded session: prefill, single steps, several rows at once with a cache, single steps."""
    table = recorded["embeds"]
    cache = llm.new_cache()

    def several(name: str, embeds: np.ndarray) -> None:
        found = llm.forward(embeds, cache, range(len(embeds)))
        close(found.logits, recorded[f"{name}_logits_{case}"][0])
        close(found.hidden, recorded[f"{name}_hidden_{case}"][0])

    def single(name: str) -> None:
        for step, token in enumerate(recorded[f"{name}_ids_{case}"]):
            found = llm.forward(table[[token]], cache)
            close(found.logits[0], recorded[f"{name}_logits_{case}"][step])
            close(found.hidden[0], recorded[f"{name}_hidden_{case}"][step])

    several("prefill", recorded[f"inputs_embeds_{case}"][0])
    single("decode")
    several("chunk", recorded[f"chunk_embeds_{case}"][0])
    single("decode2")
    assert cache.length == rows(recorded, case)


def test_golden_asked_positions_only(llm: OrtLlm, recorded: Recorded) -> None:
    """The head runs at the asked positions, in their order; the KV cache gets all positions."""
    cache, embeds = llm.new_cache(), recorded["inputs_embeds_0"][0]
    found = llm.forward(embeds, cache, [-1, 2, 0])
    close(found.logits, recorded["prefill_logits_0"][0][[-1, 2, 0]])
    close(found.hidden, recorded["prefill_hidden_0"][0][[-1, 2, 0]])
    step = llm.forward(recorded["embeds"][recorded["decode_ids_0"][:1]], cache)
    close(step.logits[0], recorded["decode_logits_0"][0])


def test_golden_truncated_cache_continues(llm: OrtLlm, recorded: Recorded) -> None:
    """Kept rows stay valid; truncated rows have no effect."""
    cache, embeds = llm.new_cache(), recorded["inputs_embeds_0"][0]
    kept = len(embeds) // 3
    llm.forward(embeds[:kept], cache)
    llm.forward(100 * embeds[::-1][: cache.capacity - kept], cache)
    cache.truncate(kept)
    found = llm.forward(embeds[kept:], cache, range(len(embeds) - kept))
    close(found.logits, recorded["prefill_logits_0"][0][kept:])


def test_golden_graph_is_standard_onnx(portable: Path) -> None:
    onnx.checker.check_model(portable, full_check=True)
    model = onnx.load(portable)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 24, "lira": 1}


def cases(recorded: Recorded) -> int:
    """Recorded sessions."""
    return sum(name.startswith("inputs_embeds_") for name in recorded)


def rows(recorded: Recorded, case: int) -> int:
    """Rows of the cache at the end of a recorded session."""
    return sum(recorded[f"{part}_{case}"].shape["embeds" in part] for part in PARTS)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
