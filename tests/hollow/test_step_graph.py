"""Decode steps as CUDA graphs, on the real onnxruntime-gpu: what is captured, launched and copied."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine import Bundle, open_engines
from lira_engine.build import build
from lira_engine.engines.llm_tensors import POSITION, SEQLENS, TOTAL
from lira_engine.engines.record import BUILD_NAME, read_build
from lira_engine.lowering.passes.use_group_query_attention import UseGroupQueryAttention
from lira_engine.ort import build_cuda
from lira_engine.ort.device import cuda_device
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.options import CudaOptions

if TYPE_CHECKING:
    from .conftest import Asked, Asking

PRECISIONS = ("fp32", "fp16", "int4")
LAUNCH = "cudaGraphLaunch"
FLOAT = 4  # bytes


@pytest.fixture(params=PRECISIONS)
def file(built: Callable[[str], Path], request: pytest.FixtureRequest) -> tuple[Path, str]:
    """The language model's engine, and its precision."""
    bundle = Bundle.open(built(request.param))
    return bundle.engine_folder("cuda", request.param) / "llm.onnx", request.param


def opened(file: tuple[Path, str], captures: bool = True) -> OrtLlm:
    return OrtLlm(file[0], device=replace(cuda_device(file[1]), captures=captures))


def rows_for(llm: OrtLlm, rows: int) -> np.ndarray:
    return np.zeros((rows, llm.sizes["hidden_size"]), np.float32)


def launches(asked: Asked) -> int:
    """Return how many kernels the host launched, each by a call of its own."""
    return sum(count for name, count in asked.calls.items() if "LaunchKernel" in name)


def test_a_build_captures_steps_and_says_so(built: Callable[[str], Path]) -> None:
    bundle = Bundle.open(built("fp16"))
    record = read_build(bundle.engine_folder("cuda", "fp16"), "")
    assert record.options["step_graph"] == "auto" and record.settled["step_graph"] == "on"
    assert "decode steps are CUDA graphs" in record.said
    with open_engines(bundle, "cuda", "fp16", unverified=True) as engines:
        assert engines.llm.new_cache().step is not None  # type: ignore[attr-defined]


def test_a_step_is_one_launch(file: tuple[Path, str], asking: Asking) -> None:
    """The third run of the first step is captured, without a call that a capture forbids, or a copy of the
    host's memory. Later steps launch the graph, wherever the row goes, and nothing else."""
    with opened(file) as llm:
        cache, row = llm.new_cache(), rows_for(llm, 1)
        llm.forward(rows_for(llm, 5), cache)
        with asking() as asked:
            llm.forward(row, cache)
        (graph,) = [one for one in asked.graphs if one["launches"]]
        assert not graph["error"] and not graph["pageable_copies"] and graph["nodes"] > 20
        assert launches(asked) > 20 and asked.calls[LAUNCH] == 1
        for length in (7, 8, 9, 7):  # that of the cache after the step
            if length < cache.length:
                cache.truncate(length - 1)
            with asking() as asked:
                llm.forward(row, cache)
            assert cache.length == length and asked.calls[LAUNCH] == 1
            assert launches(asked) == asked.memory["allocations"] == 0
            assert sum(asked.kernels.values()) > 20, "those of the graph"


def test_a_step_copies_its_row_and_its_outputs(file: tuple[Path, str], asking: Asking) -> None:
    """In: the embeddings, and where the row goes. Out: logits and hidden states."""
    with opened(file) as llm:
        cache, row = llm.new_cache(), rows_for(llm, 1)
        llm.forward(rows_for(llm, 5), cache)
        llm.forward(row, cache)
        with asking() as asked:
            llm.forward(row, cache)
        width, vocabulary = llm.sizes["hidden_size"], llm.sizes["vocab_size"]
        assert asked.bytes(to_device=True) == width * FLOAT + (8 if file[1] == "fp32" else 4)
        assert asked.bytes(to_device=False) == (width + vocabulary) * FLOAT
        assert asked.calls["cudaMemcpy"] == 4 and "cudaMemcpyAsync" not in asked.calls


def test_without_a_graph_a_step_launches_its_kernels(file: tuple[Path, str], asking: Asking) -> None:
    with opened(file, captures=False) as llm:
        cache, row = llm.new_cache(), rows_for(llm, 1)
        llm.forward(rows_for(llm, 5), cache)
        llm.forward(row, cache)
        with asking() as asked:
            llm.forward(row, cache)
        print(file[1], launches(asked), "launches")
        assert LAUNCH not in asked.calls and launches(asked) > 20
        assert "cudaStreamBeginCapture" not in asked.calls


def test_other_passes_are_not_captured(file: tuple[Path, str], asking: Asking) -> None:
    with opened(file) as llm:
        cache = llm.new_cache()
        for rows in (1, 5, 2):
            with asking() as asked:
                llm.forward(rows_for(llm, rows), cache)
            assert "cudaStreamBeginCapture" not in asked.calls and asked.kernels


def test_the_next_cache_replays_the_graph_of_one_that_is_gone(file: tuple[Path, str], asking: Asking) -> None:
    with opened(file) as llm:
        row = rows_for(llm, 1)
        for number in range(3):
            cache = llm.new_cache()
            llm.forward(rows_for(llm, 5), cache)
            with asking() as asked:
                llm.forward(row, cache)
            assert ("cudaStreamBeginCapture" in asked.calls) == (number == 0)
            assert asked.calls[LAUNCH] == 1
            del cache
        kept = llm.new_cache(), llm.new_cache()
        with asking() as asked:
            for cache in kept:
                llm.forward(rows_for(llm, 5), cache)
                llm.forward(row, cache)
        assert asked.calls["cudaStreamBeginCapture"] == 1 and asked.calls[LAUNCH] == 2


def test_another_thread_may_go_on(file: tuple[Path, str], asking: Asking) -> None:
    """ONNX Runtime keeps graphs by thread: another one captures its own, or replays the same."""
    with opened(file) as llm:
        cache, row = llm.new_cache(), rows_for(llm, 1)
        llm.forward(rows_for(llm, 5), cache)
        llm.forward(row, cache)
        failed: list[BaseException] = []

        def steps() -> None:
            try:
                for _ in range(2):
                    llm.forward(row, cache)
            except BaseException as error:
                failed.append(error)

        with asking() as asked:
            thread = threading.Thread(target=steps)
            thread.start()
            thread.join()
        assert not failed and cache.length == 8 and asked.calls[LAUNCH] == 2


def test_a_graph_that_copies_is_not_captured(
    fresh_nano: Callable[[], Path], zeros_accepted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lengths computed in the graph, as before: one of them is copied to the device. The build says what
    ONNX Runtime says, and its engines run without."""
    passes = build_cuda.cuda_pipeline

    def computed(*arguments: object, **options: object) -> list[ir.passes.PassBase]:
        found = passes(*arguments, **options)  # type: ignore[arg-type]
        return [UseGroupQueryAttention() if isinstance(one, UseGroupQueryAttention) else one for one in found]

    monkeypatch.setattr(build_cuda, "cuda_pipeline", computed)
    bundle = Bundle.open(fresh_nano())
    folder = build(bundle, "cuda", "fp16")
    record = read_build(folder, "")
    assert record.settled["step_graph"] == "off"
    (said,) = [line for line in record.said if "CUDA graphs" in line]
    assert said.startswith("decode steps are no CUDA graphs: ONNX Runtime ")
    assert "all compute graph nodes have not been partitioned to the CUDAExecutionProvider" in said
    inputs = {value.name for value in ir.load(folder / "llm.onnx").graph.inputs}
    assert POSITION in inputs and not {SEQLENS, TOTAL} & inputs
    with open_engines(bundle, "cuda", "fp16", unverified=True) as engines:
        assert engines.llm.new_cache().step is None  # type: ignore[attr-defined]


def test_a_build_without_graphs(fresh_nano: Callable[[], Path], zeros_accepted: None) -> None:
    bundle = Bundle.open(fresh_nano())
    folder = build(bundle, "cuda", "fp16", CudaOptions(step_graph="off"))
    record = json.loads((folder / BUILD_NAME).read_text())
    assert record["options"]["step_graph"] == "off" and record["chosen"]["step_graph"] == "off"
    assert "decode steps are no CUDA graphs, as asked" in record["said"]
