"""The language model's TensorRT runner: the portable model's outputs, a cache that stays on the device, no
needless copies."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine.errors import ContextFull, LiraError
from lira_engine.trt.llm import Chunk, TrtLlm, chunks
from lira_engine.trt.profiles import ASKED_ROWS, PREFILL_ROWS

F32 = 4
I64 = 8


@pytest.fixture
def reference(tiny_llm: Any) -> Iterator[Any]:
    from lira_engine.ort.llm import OrtLlm

    with OrtLlm(tiny_llm.graph, threads=1) as llm:
        yield llm


@pytest.fixture(params=[("float32", 1), ("float16", 1), ("float16", 2)])
def llm(request: pytest.FixtureRequest, installed: Any, tiny_llm: Any, tmp_path: Path) -> Iterator[TrtLlm]:
    """For each flavour, with caches in both dtypes, one optimization profile or two. At the end nothing is
    left on the device."""
    dtype, llm_profiles = request.param
    file = installed.engine(
        tmp_path / "llm.engine",
        tiny_llm.manifest,
        "llm",
        tiny_llm.graph,
        cache_dtype=dtype,
        llm_profiles=llm_profiles,
    )
    with installed.open_llm(tiny_llm.manifest, file) as runner:
        installed.tolerance = {"float32": 1e-5, "float16": 2e-2}[dtype]
        yield runner
    assert installed.gpu.used == 0


def embeds(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 32), dtype=np.float32)


def test_chunks_hold_all_rows_within_the_limits_of_prefill() -> None:
    assert list(chunks(1, [0])) == [Chunk(0, 1, (0,))]
    assert list(chunks(300, [299])) == [Chunk(0, 256, ()), Chunk(256, 300, (299,))]
    assert list(chunks(6, [0, 1, 2, 3, 4, 5])) == [Chunk(0, 4, (0, 1, 2, 3)), Chunk(4, 6, (4, 5))]
    assert list(chunks(9, [0, 1, 2, 3, 8])) == [Chunk(0, 8, (0, 1, 2, 3)), Chunk(8, 9, (8,))]
    assert list(chunks(2, [])) == [Chunk(0, 2, ())]
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = int(rng.integers(1, 1500))
        asked = np.flatnonzero(rng.random(rows) < rng.choice([0, 0.01, 0.5, 1])).tolist()
        found = list(chunks(rows, asked))
        assert [c.start for c in found] == [0, *(c.stop for c in found[:-1])] and found[-1].stop == rows
        assert all(0 < c.stop - c.start <= PREFILL_ROWS and len(c.asked) <= ASKED_ROWS for c in found)
        assert all(c.start <= row < c.stop for c in found for row in c.asked)
        assert [row for c in found for row in c.asked] == asked


@pytest.mark.parametrize("rows", [1, 2, 256, 257, 300, 620])
def test_outputs_are_close_to_the_portable_models(
    installed: Any, llm: TrtLlm, reference: Any, rows: int
) -> None:
    cache, other = llm.new_cache(), reference.new_cache()
    for seed, asked in ((0, (-1,)), (1, (0,))):
        given = embeds(rows if seed == 0 else 1, seed)
        found, expected = llm.forward(given, cache, asked), reference.forward(given, other, asked)
        np.testing.assert_allclose(found.logits, expected.logits, atol=installed.tolerance)
        np.testing.assert_allclose(found.hidden, expected.hidden, atol=installed.tolerance)
        assert found.logits.dtype == found.hidden.dtype == np.float32
    assert cache.length == rows + 1


def test_forward_answers_for_any_positions_in_any_order(installed: Any, llm: TrtLlm, reference: Any) -> None:
    every = reference.forward(embeds(300), reference.new_cache(), range(300))
    asked = [299, 3, -300, 255, 256, 3, 7, 8, 9, -1]
    found = llm.forward(embeds(300), llm.new_cache(), asked)
    np.testing.assert_allclose(found.logits, every.logits[asked], atol=installed.tolerance)
    np.testing.assert_allclose(found.hidden, every.hidden[asked], atol=installed.tolerance)
    none = llm.forward(embeds(5), llm.new_cache(), [])
    assert (none.logits.shape, none.hidden.shape) == ((0, 23), (0, 32))


def test_truncate_forgets_later_rows_and_copies_nothing(installed: Any, llm: TrtLlm) -> None:
    cache = llm.new_cache()
    llm.forward(embeds(4), cache)
    expected = llm.forward(embeds(3, seed=1), cache).logits
    for rows in (8, 1, 270):  # odd and even numbers of passes: each of two buffer sets is the last once
        cache.truncate(4)
        assert cache.length == 4
        llm.forward(1e3 * embeds(rows, seed=2), cache)
        assert installed.copies and not installed.copies
        cache.truncate(4)
        assert not installed.copies
        np.testing.assert_array_equal(llm.forward(embeds(3, seed=1), cache).logits, expected)
    with pytest.raises(ValueError, match="cannot truncate a cache of 7 rows to 8"):
        cache.truncate(8)
    with pytest.raises(ValueError, match="to -1"):
        cache.truncate(-1)


def test_caches_are_independent(llm: TrtLlm) -> None:
    a, b = llm.new_cache(), llm.new_cache()
    llm.forward(embeds(4), a)
    llm.forward(embeds(2, seed=1), b)
    found = llm.forward(embeds(1, seed=2), a)
    alone = llm.new_cache()
    llm.forward(embeds(4), alone)
    np.testing.assert_array_equal(found.logits, llm.forward(embeds(1, seed=2), alone).logits)
    assert (a.length, b.length, alone.length) == (5, 2, 5)


def test_a_full_context_leaves_the_cache_unchanged(llm: TrtLlm) -> None:
    assert llm.capacity == 640
    cache = llm.new_cache()
    llm.forward(embeds(639), cache)
    with pytest.raises(ContextFull, match="639 of 640 positions are taken and 2 more are needed"):
        llm.forward(embeds(2), cache)
    assert cache.length == 639
    llm.forward(embeds(1), cache)


def test_a_pass_copies_only_its_inputs_and_answers(installed: Any, llm: TrtLlm) -> None:
    cache = llm.new_cache()
    assert not installed.copies
    small = [("in", I64), ("in", I64)]  # position, one asked row
    answer = [("out", 23 * F32), ("out", 32 * F32)]
    llm.forward(embeds(1), cache)
    assert installed.copies == [("in", 32 * F32), *small, *answer]
    llm.forward(embeds(300), cache)
    assert installed.copies == [
        *(("in", 256 * 32 * F32), *small),  # asks for one row, which is not copied out
        *(("in", 44 * 32 * F32), *small, *answer),
    ]
    llm.forward(embeds(7), cache, [0, 1, 6])
    assert installed.copies == [
        *(("in", 7 * 32 * F32), ("in", I64), ("in", 3 * I64)),
        *(("out", 3 * 23 * F32), ("out", 3 * 32 * F32)),
    ]


def test_a_chunk_is_prepared_while_the_previous_one_runs(installed: Any, llm: TrtLlm) -> None:
    """Until it needs an answer, the host waits only for copies out of the page-locked array."""
    cache = llm.new_cache()
    pending = []
    for rows in (256, 512):
        llm.forward(embeds(1), cache)
        assert installed.gpu.pending() == 0
        llm.forward(embeds(rows), cache, [])
        pending.append(installed.gpu.pending())
        cache.truncate(0)
    assert pending[1] == pending[0] + 1  # the first chunk's pass itself
    llm.forward(embeds(1), cache)
    assert installed.gpu.pending() == 0


def test_threads_take_turns(llm: TrtLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scenes share the page-locked arrays."""
    alone = [llm.forward(embeds(3, seed), llm.new_cache()).logits for seed in range(4)]
    inside, most, enqueue, found = 0, 0, llm._enqueue, {}

    def slowly(*arguments: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        enqueue(*arguments)
        inside -= 1

    def ask(seed: int) -> None:
        found[seed] = llm.forward(embeds(3, seed), llm.new_cache()).logits

    monkeypatch.setattr(llm, "_enqueue", slowly)
    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    for seed, logits in enumerate(alone):
        np.testing.assert_array_equal(found[seed], logits)
    waiting = threading.Thread(target=llm.new_cache)
    with llm._lock:
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
    waiting.join()


def test_a_decode_step_binds_only_caches_that_swap(installed: Any, llm: TrtLlm) -> None:
    cache = llm.new_cache()
    decode = installed.trt.engines[0].contexts[-1]
    llm.forward(embeds(1), cache)
    before = decode.address_calls
    llm.forward(embeds(1), cache)
    swapped = 0 if installed.flavour.dialect == "cache_update" else 8  # two layers, keys, values, in, out
    assert decode.address_calls - before == swapped


def test_a_new_cache_is_zeroed_and_reuses_dropped_buffers(installed: Any, llm: TrtLlm) -> None:
    expected = llm.forward(embeds(3), llm.new_cache()).logits
    gc.collect()
    used = installed.gpu.used
    for memory in installed.gpu.live.values():
        memory[:] = 0xFF  # NaN
    np.testing.assert_array_equal(llm.forward(embeds(3), llm.new_cache()).logits, expected)
    assert installed.gpu.used == used
    both = llm.new_cache(), llm.new_cache()
    assert installed.gpu.used == used + both[1].nbytes > used  # the other one has the dropped buffers
    del both


def test_outputs_do_not_change_in_later_passes(llm: TrtLlm) -> None:
    cache = llm.new_cache()
    first = llm.forward(embeds(3), cache)
    kept = first.logits.copy(), first.hidden.copy()
    llm.forward(embeds(3, seed=1), cache)
    np.testing.assert_array_equal(first.logits, kept[0])
    np.testing.assert_array_equal(first.hidden, kept[1])


def test_wrong_inputs_and_caches_of_other_models_are_refused(
    installed: Any, llm: TrtLlm, tiny_llm: Any, tmp_path: Path
) -> None:
    cache = llm.new_cache()
    with pytest.raises(ValueError, match=r"embeddings are float64 \[2, 32\], expected float32 \[S, 32\]"):
        llm.forward(embeds(2).astype(np.float64), cache)
    with pytest.raises(ValueError, match="expected float32"):
        llm.forward(embeds(2)[:, :-1], cache)
    with pytest.raises(ValueError, match="expected float32"):
        llm.forward(embeds(0), cache)
    with pytest.raises(ValueError, match=r"logits asked at \[2\], there are 2 rows"):
        llm.forward(embeds(2), cache, [2])
    file = installed.engine(tmp_path / "other.engine", tiny_llm.manifest, "llm", tiny_llm.graph)
    with installed.open_llm(tiny_llm.manifest, file) as other, pytest.raises(ValueError, match="belongs to"):
        llm.forward(embeds(2), other.new_cache())
    assert cache.length == 0


def test_close_frees_everything(installed: Any, tiny_llm: Any, tmp_path: Path) -> None:
    file = installed.engine(tmp_path / "llm.engine", tiny_llm.manifest, "llm", tiny_llm.graph)
    llm = installed.open_llm(tiny_llm.manifest, file)
    cache = llm.new_cache()
    llm.forward(embeds(300), cache, [])  # still enqueued
    llm.close()
    assert installed.gpu.used == 0
    with pytest.raises(ValueError, match="closed"):
        llm.forward(embeds(1), cache)
    with pytest.raises(ValueError, match="closed"):
        llm.new_cache()
    llm.close()


def test_a_cache_that_does_not_fit_leaves_no_buffers(installed: Any, tiny_llm: Any, tmp_path: Path) -> None:
    file = installed.engine(tmp_path / "llm.engine", tiny_llm.manifest, "llm", tiny_llm.graph)
    with installed.open_llm(tiny_llm.manifest, file) as llm:
        used = installed.gpu.used
        installed.gpu.size = used + (4 * llm._sets - 1) * 640 * 16 * F32  # a set has four such buffers
        with pytest.raises(
            LiraError,
            match=r"Stand-in sm_87 has 0 of 0 MiB free, 1 MiB more are needed: .*build int4 engines, or "
            "export the bundle with a shorter context",
        ):
            llm.new_cache()
        assert installed.gpu.used == used
        installed.gpu.size = 1 << 30
        llm.forward(embeds(2), llm.new_cache())


@pytest.mark.parametrize("llm_profiles", [1, 2])
def test_rtx_captures_decode_steps_in_a_cuda_graph(
    rtx: Any, tiny_llm: Any, llm_profiles: int, tmp_path: Path
) -> None:
    file = rtx.engine(
        tmp_path / "llm.engine", tiny_llm.manifest, "llm", tiny_llm.graph, llm_profiles=llm_profiles
    )
    with rtx.open_llm(tiny_llm.manifest, file):
        rest, full, decode = (context.config for context in rtx.trt.engines[0].contexts)
        strategies = rtx.trt.CudaGraphStrategy
        assert decode.cuda_graph_strategy is strategies.WHOLE_GRAPH_CAPTURE
        assert [context.profile for context in rtx.trt.engines[0].contexts] == [0, 0, llm_profiles - 1]
        assert {rest.cuda_graph_strategy, full.cuda_graph_strategy} == {strategies.DISABLED}
        memory = rtx.trt.ExecutionContextAllocationStrategy
        assert (rest.strategy, full.strategy) == (memory.ON_PROFILE_CHANGE, memory.ON_PROFILE_CHANGE)
        assert decode.strategy is memory.STATIC


def test_rtx_compiles_kernels_before_they_run(rtx: Any, tiny_llm: Any, tmp_path: Path) -> None:
    """`verify` runs the kernels of later runs: specialized for full chunks and steps, else generic ones."""
    file = rtx.engine(tmp_path / "llm.engine", tiny_llm.manifest, "llm", tiny_llm.graph)
    with rtx.open_llm(tiny_llm.manifest, file) as llm:
        contexts = rtx.trt.engines[0].contexts
        kernels = rtx.trt.DynamicShapesKernelSpecializationStrategy
        strategies = [c.config.dynamic_shapes_kernel_specialization_strategy for c in contexts]
        assert strategies == [kernels.NONE, kernels.EAGER, kernels.EAGER]
        llm.forward(embeds(2 * PREFILL_ROWS + 3), llm.new_cache())
        llm.forward(embeds(1), llm.new_cache())
        assert [context.passes for context in contexts] == [1, 2, 1]


def test_tensorrt_has_one_context_for_all_prefill_chunks(
    installed_as: Any, tiny_llm: Any, tmp_path: Path
) -> None:
    thor = installed_as("thor")
    file = thor.engine(tmp_path / "llm.engine", tiny_llm.manifest, "llm", tiny_llm.graph)
    with thor.open_llm(tiny_llm.manifest, file) as llm:
        llm.forward(embeds(PREFILL_ROWS + 3), llm.new_cache())
        llm.forward(embeds(1), llm.new_cache())
        assert [context.passes for context in thor.trt.engines[0].contexts] == [2, 1]


def test_compiled_kernels_are_kept_for_each_engine(rtx: Any, tiny_llm: Any, tmp_path: Path) -> None:
    file = rtx.engine(tmp_path / "llm.engine", tiny_llm.manifest, "llm", tiny_llm.graph)
    compiled = []
    for _ in range(2):
        with rtx.open_llm(tiny_llm.manifest, file) as llm:
            # Kept before the end: a killed program does not close.
            assert len(list((tmp_path / "cache" / "lira-edge" / "kernels").glob("*/*.bin"))) == 1
            for rows in (1, 9):
                llm.forward(embeds(rows), llm.new_cache())
            compiled.append(rtx.trt.engines[-1].contexts[0].config.runtime_cache.compiled)
    assert compiled[0] > 0 and compiled[1] == 0
    kept = list((tmp_path / "cache" / "lira-edge" / "kernels").glob("*/*.bin"))
    assert len(kept) == 1 and kept[0].parent.name == "tensorrt-rtx-1.7.1-Stand-in-sm-87"
    rtx.engine(file, tiny_llm.manifest, "llm", tiny_llm.graph)  # built again
    with rtx.open_llm(tiny_llm.manifest, file) as llm:
        llm.forward(embeds(1), llm.new_cache())
        assert rtx.trt.engines[-1].contexts[0].config.runtime_cache.compiled > 0
    kept_before, kept = kept, list((tmp_path / "cache" / "lira-edge" / "kernels").glob("*/*.bin"))
    assert len(kept) == 1 and kept != kept_before
    (tmp_path / "other").mkdir()
    other = rtx.engine(tmp_path / "other" / file.name, tiny_llm.manifest, "llm", tiny_llm.graph)
    with rtx.open_llm(tiny_llm.manifest, other) as llm:  # another bundle's
        llm.forward(embeds(1), llm.new_cache())
    assert len(list(kept[0].parent.iterdir())) == 2 and kept[0].exists()
    kept[0].write_bytes(b"spoilt")
    with rtx.open_llm(tiny_llm.manifest, file) as llm:
        llm.forward(embeds(1), llm.new_cache())
    assert kept[0].read_bytes() != b"spoilt"
