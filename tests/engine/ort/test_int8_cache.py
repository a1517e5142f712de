"""A KV cache that decode steps read in 8 bits: close to fp32, and the same whatever was asked before."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.accuracy import rms_error
from lira_engine.errors import ContextFull, LiraError
from lira_engine.lowering.cpu import cpu_pipeline, cpu_prefill
from lira_engine.lowering.passes.quantize_kv_cache import QuantizeKvCache
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.prefill import save_prefill
from lira_engine.ort import target
from lira_engine.ort.int8_cache import Int8KvCache
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.options import CpuOptions
from lira_engine.ort.prefill import LEAST_ROWS
from lira_export.config import LlmConfig

RandomLlm = Callable[[LlmConfig, int], ir.Model]
CONFIG = LlmConfig(
    vocab_size=23,
    hidden_size=64,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
)
CAPACITY, FIRST = 6 * LEAST_ROWS, 2 * LEAST_ROWS
C = CONFIG.hidden_size


@pytest.fixture(scope="module")
def folders(random_llm: RandomLlm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model's engines with caches of both kinds; both have the graphs for many rows."""
    found = {}
    for kind, last in (("fp32", ()), ("int8", (QuantizeKvCache(),))):
        found[kind] = tmp_path_factory.mktemp(kind)
        model = apply(random_llm(CONFIG, CAPACITY), (*cpu_pipeline("llm"), *last))
        ir.save(model, found[kind] / "llm.onnx")
        save_prefill(cpu_prefill(random_llm(CONFIG, CAPACITY), "int4"), found[kind])
    return found


@pytest.fixture
def llm(folders: dict[str, Path]) -> Iterator[OrtLlm]:
    with OrtLlm(folders["int8"] / "llm.onnx", threads=1) as opened:
        yield opened


@pytest.fixture
def reference(folders: dict[str, Path]) -> Iterator[OrtLlm]:
    with OrtLlm(folders["fp32"] / "llm.onnx", threads=1) as opened:
        yield opened


def embeds(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, C), dtype=np.float32)


def passes(llm: OrtLlm, cache: Any, *rows: int) -> list[np.ndarray]:
    """Return the last logits of passes with so many rows each."""
    return [llm.forward(embeds(count, seed), cache).logits for seed, count in enumerate(rows)]


def test_passes_of_few_and_many_rows_in_turn_are_those_of_an_fp32_cache(
    llm: OrtLlm, reference: OrtLlm
) -> None:
    rows = (FIRST, 1, 1, 3, LEAST_ROWS + 4, 1, LEAST_ROWS + 1, 2)
    cache, expected = llm.new_cache(), reference.new_cache()
    assert isinstance(cache, Int8KvCache)
    for a, b in zip(passes(llm, cache, *rows), passes(reference, expected, *rows), strict=True):
        assert 1e-5 < rms_error(a, b) < 0.03
    assert cache.length == expected.length == sum(rows)
    cache.before_many_rows()  # what decode steps wrote is there in fp32, too
    for name, found in cache.rows.items():
        assert rms_error(found.numpy(), expected.rows[name].numpy()) < 0.03


def test_the_first_passes_rows_stay_as_they_are_in_fp32(llm: OrtLlm, reference: OrtLlm) -> None:
    """Passes of many rows read the image's rows unrounded, also after decode steps."""
    caches = llm.new_cache(), reference.new_cache()
    for one, cache in zip((llm, reference), caches, strict=True):
        passes(one, cache, FIRST, 1, 1, LEAST_ROWS)
    for name, rows in caches[0].rows.items():
        expected = caches[1].rows[name].numpy()[:, :, : FIRST - 1]
        np.testing.assert_array_equal(rows.numpy()[:, :, : FIRST - 1], expected)


@pytest.mark.parametrize("first", [FIRST, 3])
def test_an_answer_does_not_depend_on_those_before(llm: OrtLlm, first: int) -> None:
    """After other rows, larger ones too, a truncated cache answers as a new one, bit for bit."""
    expected = passes(llm, llm.new_cache(), first, 1, LEAST_ROWS + 2, 1)
    cache = llm.new_cache()
    llm.forward(1e3 * embeds(LEAST_ROWS + 5, seed=7), cache)
    for _ in range(2):
        llm.forward(1e3 * embeds(2, seed=8), cache)
        cache.truncate(0)
        for found, wanted in zip(passes(llm, cache, first, 1, LEAST_ROWS + 2, 1), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    cache.truncate(first)  # a second question about the same image
    llm.forward(embeds(LEAST_ROWS + 1, seed=9), cache)
    cache.truncate(first)
    again = [llm.forward(embeds(n, seed), cache).logits for seed, n in ((1, 1), (2, LEAST_ROWS + 2), (3, 1))]
    for found, wanted in zip(again, expected[1:], strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_rows_that_were_forgotten_are_converted_again(llm: OrtLlm) -> None:
    """Where no decode step lies between the passes of many rows that forget and replace them."""
    cache, new = llm.new_cache(), llm.new_cache()
    for one in (cache, new):
        llm.forward(embeds(FIRST), one, [])
    llm.forward(embeds(3, seed=1), cache)
    llm.forward(embeds(LEAST_ROWS, seed=2), cache, [])
    cache.truncate(FIRST)
    for one in (cache, new):
        llm.forward(embeds(LEAST_ROWS, seed=3), one, [])
    np.testing.assert_array_equal(llm.forward(embeds(1), cache).logits, llm.forward(embeds(1), new).logits)


def test_bytes_are_those_of_rows_in_fp32_and_in_int8(llm: OrtLlm, reference: OrtLlm) -> None:
    cache, wide = llm.new_cache(), reference.new_cache()
    for one, opened in ((cache, llm), (wide, reference)):
        passes(opened, one, FIRST, 1, LEAST_ROWS)
    scales = sum(tensor.scales.nbytes for tensor in cache._tensors)
    heads = sum(len(tensor.codes) for tensor in cache._tensors)
    narrow = cache.nbytes - wide.nbytes - scales
    rows = sum(tensor.codes[:, : cache.length].nbytes for tensor in cache._tensors)
    assert rows <= narrow < rows + heads * mmap.PAGESIZE


def test_scales_leave_room_over_the_first_pass(llm: OrtLlm) -> None:
    cache = llm.new_cache()
    llm.forward(embeds(FIRST), cache, [])
    for tensor, rows in zip(cache._tensors, cache.rows.values(), strict=True):
        largest = np.abs(rows.numpy()[0, :, :FIRST]).max(axis=1)
        np.testing.assert_allclose(tensor.scales * 127, 3 * largest, rtol=1e-6)
        assert not tensor.codes.any()  # converted when a decode step needs them
    llm.forward(embeds(1), cache)
    for tensor in cache._tensors:
        error = tensor.codes[:, :FIRST] * tensor.scales[:, None] - tensor.wide[:, :FIRST]
        assert np.all(np.abs(error) <= 0.501 * tensor.scales[:, None])


def test_a_first_pass_of_few_rows_is_measured_before(llm: OrtLlm, reference: OrtLlm) -> None:
    """Logits asked at all rows, too: no row may be read with scales that nothing set."""
    for rows, asked in ((1, [-1]), (5, [0, 2, 4]), (FIRST, [0, FIRST - 1])):
        found = llm.forward(embeds(rows), llm.new_cache(), asked)
        expected = reference.forward(embeds(rows), reference.new_cache(), asked)
        assert rms_error(found.logits, expected.logits) < 0.03


def test_a_full_context_leaves_the_cache_unchanged(llm: OrtLlm) -> None:
    cache = llm.new_cache()
    llm.forward(embeds(CAPACITY - 1), cache)
    with pytest.raises(ContextFull):
        llm.forward(embeds(2), cache)
    assert cache.length == CAPACITY - 1
    llm.forward(embeds(1), cache)


def test_an_engine_without_the_graphs_for_many_rows_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "llm.onnx").write_bytes((folders["int8"] / "llm.onnx").read_bytes())
    with pytest.raises(LiraError, match="graphs for passes of many rows beside it are missing: build it"):
        OrtLlm(tmp_path / "llm.onnx", threads=1)


def test_options_and_versions_that_lack_it_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LiraError, match="an int8 KV cache needs prefill int8: leave out --prefill"):
        CpuOptions(kv_cache="int8", prefill="same")
    bundle: Any = None
    monkeypatch.setattr(target, "onnxruntime_here", lambda: ("1.26.0", []))
    for kind in ("fp32", None):
        target.CpuTarget().opener(bundle, "int4", {"kv_cache": kind}, 1)
    with pytest.raises(LiraError, match=r"needs onnxruntime 1.27 or newer, found 1.26.0: update it"):
        target.CpuTarget().opener(bundle, "int4", {"kv_cache": "int8"}, 1)
    with pytest.raises(LiraError, match=r"needs onnxruntime 1.27"):
        target.CpuTarget().builder(bundle, "int4", CpuOptions(kv_cache="int8"), 1, lambda *_: None)
    monkeypatch.setattr(target, "onnxruntime_here", lambda: ("1.27.0", []))
    target.CpuTarget().opener(bundle, "int4", {"kv_cache": "int8"}, 1)
