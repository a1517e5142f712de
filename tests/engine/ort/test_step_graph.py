"""Decode steps with fixed addresses, with the CPU provider in the place of the CUDA provider.

The CPU captures nothing: each step runs. Tested is what a graph needs: addresses that stay, values that
are written there before each step, and nothing that the host reads and that differs from step to step.
tests/hollow holds what ONNX Runtime's CUDA provider makes of it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lira_engine import Bundle, LiraError
from lira_engine.bundle.external_data import save_graph
from lira_engine.engines.accuracy import check_outputs, rms_error
from lira_engine.engines.llm_tensors import SEQLENS, TOTAL
from lira_engine.engines.replay import run_llm
from lira_engine.errors import DeviceFailed
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.ort import llm as ort_llm
from lira_engine.ort.device import CPU, Device
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.step_graph import NotCaptured, StepGraph
from lira_export.config import LlmConfig

CONFIG = LlmConfig(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2,
    rope_theta=1e4, rms_norm_eps=1e-5,
)  # fmt: skip
CAPACITY = 24
CAPTURES = replace(CPU, captures=True)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def graph(request: pytest.FixtureRequest, random_llm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "llm.onnx"
    ir.save(apply(random_llm(CONFIG, CAPACITY), cuda_pipeline("llm", request.param)), path)
    return path


@pytest.fixture
def llm(graph: Path) -> Iterator[OrtLlm]:
    with OrtLlm(graph, 1, CAPTURES) as runner:
        yield runner


@pytest.fixture
def plain(graph: Path) -> Iterator[OrtLlm]:
    with OrtLlm(graph, 1) as runner:
        yield runner


def embeds(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, CONFIG.hidden_size), dtype=np.float32)


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the positions of the steps that were captured, as they come."""
    positions: list[int] = []
    original = StepGraph.run

    def run(step: StepGraph, session: Any, embeds: np.ndarray, position: int) -> Any:
        positions.append(position)
        return original(step, session, embeds, position)

    monkeypatch.setattr(StepGraph, "run", run)
    return positions


def test_captured_steps_compute_what_others_do(
    llm: OrtLlm, plain: OrtLlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill, steps, a drafted pass, a truncated cache, steps again, up to a full cache."""
    positions = steps_of(monkeypatch)
    ours, theirs = llm.new_cache(), plain.new_cache()
    passes = [5, 1, 1, 1, 3, 1, 1, -6, 1, 1, 4, *[1] * 10]
    for seed, rows in enumerate(passes):
        if rows < 0:
            for cache in (ours, theirs):
                cache.truncate(cache.length + rows)
            continue
        found = llm.forward(embeds(rows, seed), ours)
        expected = plain.forward(embeds(rows, seed), theirs)
        np.testing.assert_allclose(found.logits, expected.logits, atol=2e-3 * np.abs(expected.logits).max())
        np.testing.assert_allclose(found.hidden, expected.hidden, atol=2e-3 * np.abs(expected.hidden).max())
        assert ours.length == theirs.length
    assert ours.length == CAPACITY - 1
    assert positions == [5, 6, 7, 11, 12, 7, 8, *range(13, 23)]
    assert not np.array_equal(found.logits, llm.forward(embeds(1, seed), ours).logits)  # another position


def test_other_passes_are_not_captured(llm: OrtLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row, one without logits, and several rows run as they are."""
    positions = steps_of(monkeypatch)
    cache = llm.new_cache()
    llm.forward(embeds(1), cache)
    llm.forward(embeds(1), cache, [])
    llm.forward(embeds(2), cache)
    assert positions == [] and cache.length == 4
    llm.forward(embeds(1), cache, [0])
    assert positions == [4]


def test_a_steps_addresses_stay_and_its_outputs_too(llm: OrtLlm) -> None:
    cache = llm.new_cache()
    llm.forward(embeds(3), cache)
    step = cache.step
    assert step is not None
    values = {**step.rows, **step._values, **step._outputs}
    places = {name: value.data_ptr() for name, value in values.items()}
    first = llm.forward(embeds(1, 1), cache)
    kept = first.logits.copy()
    llm.forward(embeds(1, 2), cache)
    np.testing.assert_array_equal(first.logits, kept)
    assert {
        name: value.data_ptr() for name, value in {**step.rows, **step._values, **step._outputs}.items()
    } == places


def test_caches_that_live_at_once_have_graphs_of_their_own(llm: OrtLlm) -> None:
    """Replayed under one number, a step would write into the other cache."""
    steps = [cache.step for cache in [llm.new_cache(), llm.new_cache()]]
    numbers = [step._options.get_run_config_entry("gpu_graph_id") for step in steps if step is not None]
    assert len(set(numbers)) == 2 and all(int(number) > 0 for number in numbers)


def test_threads_may_make_caches_at_once(llm: OrtLlm) -> None:
    """Another one takes the memory that is free between a look at it and taking it."""

    class Taken(list[StepGraph]):
        def __len__(self) -> int:
            return 1

    assert llm._steps is not None
    llm._steps._free = Taken()
    cache = llm.new_cache()
    assert cache.step is not None and cache.step in llm._steps._all


def test_what_the_host_reads_does_not_change(llm: OrtLlm) -> None:
    """A replayed graph would not notice."""
    cache = llm.new_cache()
    llm.forward(embeds(3), cache)
    step = cache.step
    assert step is not None
    for position in (3, 4):
        llm.forward(embeds(1), cache)
        if SEQLENS in step._values:
            assert step._values[TOTAL].numpy().tolist() == [CAPACITY]
            assert step._values[SEQLENS].numpy().tolist() == [position]


def test_memory_of_a_cache_that_is_gone_serves_the_next_one(llm: OrtLlm, plain: OrtLlm) -> None:
    """A graph cannot be dropped alone, and must not outlive the memory that it writes to."""
    cache, other = llm.new_cache(), llm.new_cache()
    assert cache.step is not None and other.step is not None and cache.step is not other.step
    llm.forward(np.full((20, CONFIG.hidden_size), np.nan, np.float32), cache)
    step = cache.step
    del cache
    gc.collect()
    again = llm.new_cache()
    assert again.step is step and again.rows is step.rows and again.length == 0
    reference = plain.new_cache()
    for seed in range(3):
        found = llm.forward(embeds(2, seed), again).logits, llm.forward(embeds(1, seed), again).logits
        expected = (
            plain.forward(embeds(2, seed), reference).logits,
            plain.forward(embeds(1, seed), reference).logits,
        )
        np.testing.assert_allclose(found, expected, atol=0.01)
    assert llm._steps is not None and len(llm._steps) == 2
    for _ in range(5):
        llm.new_cache()
    gc.collect()
    assert len(llm._steps) == 3


def test_a_pass_reads_lengths_from_memory_that_stays(plain: OrtLlm) -> None:
    """A decode step makes no arrays for them."""
    cache = plain.new_cache()
    plain.forward(embeds(3), cache)
    arrays = dict(cache._lengths)
    plain.forward(embeds(2), cache)
    assert all(cache._lengths[name] is array for name, array in arrays.items())
    expected = {"position": 3, SEQLENS: 4, TOTAL: 5}
    assert {name: int(array[0]) for name, array in arrays.items()} == {
        name: expected[name] for name in arrays
    }


def test_closing_frees_the_session(graph: Path) -> None:
    """With the weights, which fill a GPU, while whoever closed it still has the runner, and a cache."""
    llm = OrtLlm(graph, 1, CAPTURES)
    cache = llm.new_cache()
    llm.forward(embeds(2), cache)
    llm.forward(embeds(1), cache)
    session = weakref.ref(llm._session)
    llm.close()
    gc.collect()
    assert session() is None and cache.length == 3


def test_closing_drops_the_steps_of_caches_that_live_on(graph: Path) -> None:
    llm = OrtLlm(graph, 1, CAPTURES)
    cache = llm.new_cache()
    llm.forward(embeds(2), cache)
    step = cache.step
    assert step is not None
    llm.close()
    assert cache.step is None and not step.rows and step._binding is None
    with pytest.raises(ValueError, match="closed"):
        llm.forward(embeds(1), cache)


def test_a_session_that_cannot_capture_says_why(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise LiraError(
            "ONNX Runtime cannot load llm.onnx: it says: This session cannot use the graph capture feature "
            "as requested by the user as all compute graph nodes have not been partitioned to the CUDA EP"
        )

    monkeypatch.setattr(ort_llm, "open_session", refuse)
    with pytest.raises(
        NotCaptured, match=r"^ONNX Runtime .* build them again .* it says: cannot use"
    ) as told:
        OrtLlm(graph, 1, CAPTURES)
    assert told.value.reason.startswith("cannot use the graph capture feature as requested")
    assert "\n" not in str(told.value)


def test_another_error_is_no_reason_to_capture_nothing(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise LiraError("ONNX Runtime cannot load llm.onnx: it is no model")

    monkeypatch.setattr(ort_llm, "open_session", refuse)
    with pytest.raises(LiraError) as raised:
        OrtLlm(graph, 1, CAPTURES)
    assert not isinstance(raised.value, NotCaptured)


def test_a_step_that_fails_names_the_option(llm: OrtLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = llm.new_cache()
    llm.forward(embeds(2), cache)
    assert cache.step is not None
    cache.step._values["inputs_embeds"] = cache.step._value(np.zeros((1, 1, 3), np.float32), "cpu")
    cache.step._binding.bind_ortvalue_input("inputs_embeds", cache.step._values["inputs_embeds"])  # type: ignore[union-attr]
    with pytest.raises(DeviceFailed, match="build with --step-graph off"):
        cache.step.run(llm._session, np.zeros((1, 1, 3), np.float32), 2)  # type: ignore[arg-type]
    assert cache.length == 2


@pytest.mark.parametrize(
    "said",
    [
        "CUDA failure 906: operation would make the legacy stream depend on a capturing one ; GPU=0",
        "CUDA error cudaErrorStreamCaptureUnsupported:operation not permitted when stream is capturing",
    ],
)
def test_a_capture_that_fails_names_the_option(
    llm: OrtLlm, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """A call's error has a number, a kernel's a name."""
    cache = llm.new_cache()
    llm.forward(embeds(2), cache)
    assert cache.step is not None
    monkeypatch.setattr(cache.step, "_device", Device(("CUDAExecutionProvider",), "cuda"))

    def fail(*_: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fail)
    with pytest.raises(
        DeviceFailed, match="a decode step failed as a CUDA graph: build with --step-graph off"
    ):
        llm.forward(embeds(1), cache)


def test_the_providers_are_told() -> None:
    cuda = Device(("CUDAExecutionProvider",), "cuda")
    assert "enable_cuda_graph" not in dict(cuda.session_providers())["CUDAExecutionProvider"]
    told = dict(replace(cuda, captures=True).for_cache.session_providers())
    assert told["CUDAExecutionProvider"]["enable_cuda_graph"] == "1" and not told["CPUExecutionProvider"]
    assert cuda.session_entries() == {}
    assert replace(cuda, fuses_int4=True).for_cache.session_entries() == {"ep.cuda.fpa_intb_gemm": "1"}


def stale_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let steps repeat the position of the first one, as a graph that holds it would."""
    run, first = StepGraph.run, []

    def stale(step: StepGraph, session: Any, embeds: np.ndarray, position: int) -> Any:
        first.append(position)
        return run(step, session, embeds, first[0])

    monkeypatch.setattr(StepGraph, "run", stale)


@pytest.mark.portable
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_check_vectors_see_a_step_that_keeps_its_position(
    nano_bundle: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, path = Bundle.open(nano_bundle), tmp_path / "llm.onnx"
    save_graph(apply(ir.load(bundle.stage_file("llm")), cuda_pipeline("llm", precision)), path)
    vectors = bundle.check_vectors("llm")
    positions = steps_of(monkeypatch)
    with OrtLlm(path, 1, CAPTURES) as llm:
        check_outputs("llm", precision, run_llm(llm, vectors), vectors.outputs, vectors.noise)
        assert positions == [21, 22, 23] * 2
        stale_steps(monkeypatch)
        with pytest.raises(LiraError, match="differs from the recorded one"):
            check_outputs("llm", precision, run_llm(llm, vectors), vectors.outputs, vectors.noise)


@pytest.mark.portable
def test_an_answer_read_in_one_go_sees_it_in_int4(
    nano_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded weights move outputs as far as a wrong position does. `verify` also reads its answer in one go,
    in no captured step (lira_runtime.verify_answer)."""
    bundle, path = Bundle.open(nano_bundle), tmp_path / "llm.onnx"
    save_graph(apply(ir.load(bundle.stage_file("llm")), cuda_pipeline("llm", "int4")), path)
    rows = bundle.check_vectors("llm").inputs["inputs_embeds"][0]

    def error(llm: OrtLlm) -> float:
        whole = llm.forward(rows, llm.new_cache(), range(16, len(rows))).logits
        cache = llm.new_cache()
        llm.forward(rows[:16], cache)
        steps = [llm.forward(rows[i : i + 1], cache).logits[0] for i in range(16, len(rows))]
        return rms_error(np.stack(steps), whole)

    with OrtLlm(path, 1, CAPTURES) as llm:
        assert error(llm) < 0.01 < 0.1 < (stale_steps(monkeypatch), error(llm))[1]
