"""Passes of many rows, a layer at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.accuracy import rms_error
from lira_engine.errors import ContextFull, LiraError
from lira_engine.lowering.cpu import cpu_pipeline, cpu_prefill
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.prefill import save_prefill
from lira_engine.ort import prefill
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.prefill import LEAST_ROWS, OrtPrefill
from lira_export.config import LlmConfig

RandomLlm = Callable[[LlmConfig, int], ir.Model]
CAPACITY = 200
STRENGTH = np.float32(8)


@pytest.fixture(scope="module", params=[16, 12], ids=["grouped-query-attention", "decomposed-attention"])
def folder(
    request: pytest.FixtureRequest, random_llm: RandomLlm, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The fp32 engine of a small language model, and its graphs for many rows in int4's precision."""
    config = LlmConfig(
        vocab_size=23,
        hidden_size=4 * request.param,
        intermediate_size=40,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
    )
    made = tmp_path_factory.mktemp("prefill")
    ir.save(apply(strong(random_llm(config, CAPACITY)), cpu_pipeline("llm")), made / "llm.onnx")
    save_prefill(cpu_prefill(strong(random_llm(config, CAPACITY)), "int4"), made)
    return made


def strong(model: ir.Model) -> ir.Model:
    """Scale the layers' matrices, so that each layer changes its rows as much as they are."""
    for name, value in model.graph.initializers.items():
        if name.startswith("layers.") and not name.endswith("norm"):
            assert value.const_value is not None
            value.const_value = ir.tensor(STRENGTH * value.const_value.numpy(), name=name)
    return model


@pytest.fixture
def llm(folder: Path) -> Iterator[OrtLlm]:
    with OrtLlm(folder / "llm.onnx", threads=1) as opened:
        yield opened


@pytest.fixture
def plain(folder: Path, tmp_path: Path) -> Iterator[OrtLlm]:
    """The same without the graphs for many rows."""
    (tmp_path / "llm.onnx").write_bytes((folder / "llm.onnx").read_bytes())
    with OrtLlm(tmp_path / "llm.onnx", threads=1) as opened:
        yield opened


def embeds(llm: OrtLlm, rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, llm.sizes["hidden_size"]), np.float32)


def test_many_rows_are_those_of_the_engine_in_eight_bits(llm: OrtLlm, plain: OrtLlm) -> None:
    """In two passes, the second on the rows of the first."""
    caches = [one.new_cache() for one in (llm, plain)]
    for seed, rows in enumerate((LEAST_ROWS + 5, LEAST_ROWS + 1)):
        x = embeds(llm, rows, seed)
        given = x.copy()
        found, expected = (one.forward(x, cache) for one, cache in zip((llm, plain), caches, strict=True))
        for a, b in ((found.logits, expected.logits), (found.hidden, expected.hidden)):
            assert 1e-4 < rms_error(a, b) < 0.03
        np.testing.assert_array_equal(x, given)
    assert caches[0].length == caches[1].length == 2 * LEAST_ROWS + 6
    for name, rows in caches[1].rows.items():
        assert 1e-4 < rms_error(caches[0].rows[name].numpy(), rows.numpy()) < 0.03


def test_chunks_change_nothing(llm: OrtLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has its own scale: which rows are read together does not matter but for the order of sums."""
    whole = llm.forward(embeds(llm, LEAST_ROWS + 20), llm.new_cache())
    monkeypatch.setattr(prefill, "CHUNK", 7)
    parts = llm.forward(embeds(llm, LEAST_ROWS + 20), llm.new_cache())
    assert rms_error(parts.logits, whole.logits) < 1e-3


def test_rows_whose_results_are_asked_go_through_the_engine(
    llm: OrtLlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []
    monkeypatch.setattr(
        OrtPrefill,
        "fill",
        lambda self, rows, cache: (filled.append(len(rows)), cache.fill(cache.length + len(rows))),
    )
    for rows, asked, expected in (
        (LEAST_ROWS, (-1,), []),
        (LEAST_ROWS + 1, (-1,), [LEAST_ROWS]),
        (LEAST_ROWS + 9, (-3, -1), [LEAST_ROWS + 6]),
        (LEAST_ROWS + 9, (0, -1), []),
        (LEAST_ROWS + 9, (), [LEAST_ROWS + 9]),
    ):
        filled.clear()
        cache = llm.new_cache()
        out = llm.forward(embeds(llm, rows), cache, asked)
        assert filled == expected
        assert cache.length == rows and len(out.logits) == len(out.hidden) == len(asked)


def test_a_full_context_is_refused_before_a_row_is_written(llm: OrtLlm) -> None:
    cache = llm.new_cache()
    with pytest.raises(ContextFull):
        llm.forward(embeds(llm, CAPACITY + 1), cache)
    assert cache.length == 0 and not any(rows.numpy().any() for rows in cache.rows.values())


def test_a_row_that_is_not_finite_stays_alone(llm: OrtLlm) -> None:
    """A row's scale is its own: the rows before it are what they were."""
    x, cache, other = embeds(llm, LEAST_ROWS + 20), llm.new_cache(), llm.new_cache()
    llm.forward(x, other)
    x[-1] = np.nan
    llm.forward(x, cache)
    for name, rows in cache.rows.items():
        np.testing.assert_array_equal(
            rows.numpy()[:, :, : LEAST_ROWS + 19], other.rows[name].numpy()[:, :, : LEAST_ROWS + 19]
        )


def test_one_thread_at_a_time_reads_weights(tmp_path: Path) -> None:
    """The other one may be in any pass meanwhile, but not in these layers."""
    inside, both, together = threading.Event(), threading.Event(), []

    class Group:
        layers = (0,)

        def run(self, *_: object) -> None:
            together.append(inside.is_set())
            (both if inside.is_set() else inside).set()
            both.wait(0.2)
            inside.clear()

    filling = OrtPrefill(tmp_path, 0)
    filling._by_layer = {0: Group()}  # type: ignore[dict-item]
    cache: Any = SimpleNamespace(before_many_rows=lambda: None, length=0, fill=lambda length: None)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: filling.fill(np.zeros((1, 4), np.float32), cache), range(2)))
    assert together == [False, False]


def test_threads_do_not_disturb_each_other(llm: OrtLlm) -> None:
    """All passes read the layers' weights into one buffer."""
    inputs = [embeds(llm, LEAST_ROWS + 20, seed) for seed in range(4)]
    alone = [llm.forward(x, llm.new_cache()).logits for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(lambda x: llm.forward(x, llm.new_cache()).logits, inputs))
            np.testing.assert_array_equal(together, alone)


def test_a_cut_file_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = tmp_path / "llm.prefill.0.data"
    whole = data.read_bytes()
    for spoilt in (whole[:-1], whole + b"\0"):
        data.write_bytes(spoilt)
        with pytest.raises(LiraError, match=f"has {len(spoilt)} bytes, expected {len(whole)}"):
            OrtPrefill(tmp_path, layers=3)
    data.write_bytes(whole)
    opened = OrtPrefill(tmp_path, layers=3)
    os.truncate(data, len(whole) // 2)
    with pytest.raises(LiraError, match=r"llm\.prefill\.0\.data ends early: build it again"):
        for layer, group in opened._by_layer.items():
            group._read(group.layers.index(layer))
    data.write_bytes(whole)
    (tmp_path / "llm.prefill.1.onnx").unlink()
    with pytest.raises(LiraError, match="lacks layers"):
        OrtPrefill(tmp_path, layers=3)


def test_a_closed_model_runs_no_more(llm: OrtLlm) -> None:
    cache = llm.new_cache()
    llm.close()
    with pytest.raises(Exception, match="closed"):
        llm.forward(embeds(llm, LEAST_ROWS + 20), cache)
