"""The language model's runner: its outputs, its cache in place, and the inputs that it refuses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.bundle.manifest import ModelSpec
from lira_engine.errors import ContextFull, LiraError
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.llm import OrtLlm, open_llm
from lira_engine.ort.session import shrinking_arena
from lira_export.config import LlmConfig

CONFIG = LlmConfig(
    vocab_size=23,
    hidden_size=64,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
)
CAPACITY = 12
Memory = Callable[[Any], np.ndarray]
RandomLlm = Callable[[LlmConfig, int], ir.Model]
C = CONFIG.hidden_size


@pytest.fixture(scope="module")
def portable(random_llm: RandomLlm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "llm.onnx"
    ir.save(random_llm(CONFIG, CAPACITY), path)
    return path


@pytest.fixture(scope="module", params=[pytest.param("portable", marks=pytest.mark.portable), "cpu"])
def path(request: pytest.FixtureRequest, portable: Path) -> Path:
    if request.param == "portable":
        return portable
    lowered = portable.with_name("lowered.onnx")
    ir.save(apply(ir.load(portable), cpu_pipeline("llm")), lowered)
    return lowered


@pytest.fixture
def llm(path: Path) -> Iterator[OrtLlm]:
    with OrtLlm(path, threads=1) as runner:
        yield runner


def embeds(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, C), dtype=np.float32)


def test_outputs_are_those_of_the_asked_positions(llm: OrtLlm) -> None:
    every = llm.forward(embeds(5), llm.new_cache(), range(5))
    assert (every.logits.shape, every.hidden.shape) == ((5, CONFIG.vocab_size), (5, C))
    assert every.logits.dtype == every.hidden.dtype == np.float32
    last = llm.forward(embeds(5), llm.new_cache())
    np.testing.assert_allclose(last.logits, every.logits[-1:], atol=1e-6)
    some = llm.forward(embeds(5), llm.new_cache(), [1, -2])
    np.testing.assert_allclose(some.hidden, every.hidden[[1, 3]], atol=1e-6)
    none = llm.forward(embeds(5), llm.new_cache(), [])
    assert (none.logits.shape, none.hidden.shape) == ((0, CONFIG.vocab_size), (0, C))


def test_outputs_survive_the_next_pass(llm: OrtLlm) -> None:
    cache = llm.new_cache()
    first = llm.forward(embeds(3), cache)
    kept = first.logits.copy()
    llm.forward(embeds(3, seed=1), cache)
    np.testing.assert_array_equal(first.logits, kept)


def test_caches_are_independent(llm: OrtLlm) -> None:
    a, b = llm.new_cache(), llm.new_cache()
    llm.forward(embeds(4), a)
    llm.forward(embeds(2, seed=1), b)
    found = llm.forward(embeds(1, seed=2), a)
    alone = llm.new_cache()
    llm.forward(embeds(4), alone)
    np.testing.assert_array_equal(found.logits, llm.forward(embeds(1, seed=2), alone).logits)
    assert (a.length, b.length) == (5, 2)


def test_truncate_forgets_the_last_rows(llm: OrtLlm) -> None:
    cache = llm.new_cache()
    llm.forward(embeds(4), cache)
    expected = llm.forward(embeds(3, seed=1), cache).logits
    for _ in range(2):
        cache.truncate(4)
        assert cache.length == 4
        llm.forward(1e3 * embeds(8, seed=2), cache)
        cache.truncate(4)
        np.testing.assert_array_equal(llm.forward(embeds(3, seed=1), cache).logits, expected)
    with pytest.raises(ValueError, match="cannot truncate a cache of 7 rows to 8"):
        cache.truncate(8)
    with pytest.raises(ValueError, match="to -1"):
        cache.truncate(-1)


def test_a_full_context_leaves_the_cache_unchanged(llm: OrtLlm, memory: Memory) -> None:
    assert llm.capacity == CAPACITY
    cache = llm.new_cache()
    assert (cache.capacity, cache.length) == (CAPACITY, 0)
    llm.forward(embeds(CAPACITY - 1), cache)
    rows = {name: memory(value).copy() for name, value in cache.rows.items()}
    with pytest.raises(ContextFull, match="11 of 12 positions are taken and 2 more are needed"):
        llm.forward(embeds(2), cache)
    assert cache.length == CAPACITY - 1
    for name, array in rows.items():
        np.testing.assert_array_equal(memory(cache.rows[name]), array)
    llm.forward(embeds(1), cache)
    with pytest.raises(ContextFull):
        llm.forward(embeds(1), cache)


def test_a_pass_writes_its_own_rows_in_place(llm: OrtLlm, memory: Memory) -> None:
    """A cache's input and output share memory, and a pass touches no other row of it."""
    cache = llm.new_cache()
    llm.forward(embeds(3), cache)
    rows = {name: memory(value) for name, value in cache.rows.items()}
    for array in rows.values():
        assert np.abs(array[:, :, :3]).min() > 0
        array[:, :, 5:] = 7  # a copy would not have this value
    before = {name: array.copy() for name, array in rows.items()}
    llm.forward(embeds(2, seed=1), cache)
    for name, array in rows.items():
        np.testing.assert_array_equal(array[:, :, :3], before[name][:, :, :3])
        assert (array[:, :, 3:5] != before[name][:, :, 3:5]).all()
        assert (array[:, :, 5:] == 7).all()


def test_wrong_embeddings_positions_and_caches_are_refused(llm: OrtLlm, path: Path) -> None:
    cache = llm.new_cache()
    with pytest.raises(ValueError, match=r"embeddings are float64 \[2, 64\], expected float32 \[S, 64\]"):
        llm.forward(embeds(2).astype(np.float64), cache)
    with pytest.raises(ValueError, match="expected float32"):
        llm.forward(embeds(2)[:, :-1], cache)
    with pytest.raises(ValueError, match="expected float32"):
        llm.forward(embeds(0), cache)
    with pytest.raises(ValueError, match=r"logits asked at \[2\], there are 2 rows"):
        llm.forward(embeds(2), cache, [2])
    with OrtLlm(path, threads=1) as other, pytest.raises(ValueError, match="belongs to"):
        llm.forward(embeds(2), other.new_cache())
    assert cache.length == 0


def test_embeddings_need_not_be_contiguous(llm: OrtLlm) -> None:
    spread = np.repeat(embeds(4), 2, axis=0)[::2]
    np.testing.assert_array_equal(
        llm.forward(spread, llm.new_cache()).logits, llm.forward(embeds(4), llm.new_cache()).logits
    )


def test_close_frees_the_model(path: Path) -> None:
    llm = OrtLlm(path, threads=1)
    cache = llm.new_cache()
    session = weakref.ref(llm._session)
    llm.close()
    gc.collect()
    assert session() is None
    with pytest.raises(ValueError, match="closed"):
        llm.forward(embeds(1), cache)
    with pytest.raises(ValueError, match="closed"):
        llm.new_cache()
    llm.close()


def test_memory_of_many_rows_is_given_back(llm: OrtLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode step keeps its few kilobytes for the next one."""
    given: list[bool] = []
    assert llm._session is not None
    run = type(llm._session).run_with_iobinding
    monkeypatch.setattr(
        type(llm._session),
        "run_with_iobinding",
        lambda session, binding, options=None: (
            given.append(options is shrinking_arena()) or run(session, binding, options)
        ),
    )
    cache = llm.new_cache()
    for rows in (5, 1, 2, 1):
        llm.forward(embeds(rows), cache)
    assert given == [True, False, True, False]


def test_a_graph_of_another_stage_is_refused(tmp_path: Path) -> None:
    x = ir.val("pixel_values", dtype=ir.DataType.FLOAT, shape=[1])
    tape = ir.tape.Tape()
    y = tape.op("Relu", [x])
    y.name, y.type = "features", x.type
    graph = ir.Graph([x], [y], nodes=tape.nodes, opset_imports={"": 21}, name="vision")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "vision.onnx")
    with pytest.raises(LiraError, match="no language model's graph: its inputs are pixel_values"):
        OrtLlm(tmp_path / "vision.onnx")


def test_sizes_other_than_the_bundles_are_refused(path: Path) -> None:
    said = dict.fromkeys(ModelSpec.__dataclass_fields__, 0) | {
        "num_layers": 2, "num_kv_heads": 2, "head_dim": 16, "hidden_size": C, "vocab_size": 23,
        "context_length": CAPACITY,
    }  # fmt: skip
    open_llm(path, ModelSpec(**said), threads=1).close()  # type: ignore[arg-type]
    with pytest.raises(LiraError, match="vocab_size 23, expected 24"):
        open_llm(path, ModelSpec(**said | {"vocab_size": 24}), threads=1)  # type: ignore[arg-type]
