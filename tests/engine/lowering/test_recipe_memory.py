"""Weights of a recipe are scaled, rounded and written one at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.bundle.external_data import save_graph
from lira_engine.engines.recipe import Form, Smoothing, StageRecipe, smoothing_key
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.pipeline import Pass, apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline

SIZE, LAYERS = 256, 60
BYTES = 4 * SIZE**2
TARGETS: dict[str, Callable[..., Any]] = {
    "cpu": partial(cpu_pipeline, "llm", "mixed"),
    "cuda": partial(cuda_pipeline, "llm", "mixed"),
    "tensorrt": partial(tensorrt_pipeline, "llm", "mixed", "cache_update"),
}


def chain(new_graph: Any, read: Callable[[int], np.ndarray]) -> ir.Model:
    """Norms and matmuls in turn, whose weights `read` gives."""
    g = new_graph([2, SIZE])
    value, weights = g.x, []
    for i in range(LAYERS):
        value = g.op(
            "RMSNormalization", value, g.weight(f"norm{i}", np.ones(SIZE, np.float32)), shape=[2, SIZE]
        )
        weight = ir.val(f"w{i}", ir.DataType.FLOAT16, [SIZE, SIZE])
        weight.const_value = ir.LazyTensor(
            lambda i=i: ir.tensor(read(i)),
            dtype=ir.DataType.FLOAT16,
            shape=ir.Shape([SIZE, SIZE]),
            name=f"w{i}",
        )
        weights.append(weight)
        right = g.op("Cast", weight, to=ir.DataType.FLOAT, shape=[SIZE, SIZE])
        value = g.op("MatMul", value, right, shape=[2, SIZE])
    model: ir.Model = g.finish(value)
    for weight in weights:
        model.graph.register_initializer(weight)
    return model


def recipe() -> StageRecipe:
    w8a8 = [Form("w8a8", range=(-4.0, 4.0), dynamic=dynamic) for dynamic in (True, False)]
    forms = cycle([Form("int4", 32), Form("int8", 64), *w8a8, None])
    smoothing = tuple(Smoothing(str(i), (f"norm{i}",), (f"w{i}",)) for i in range(0, LAYERS, 3))
    scale = np.linspace(0.5, 2, SIZE, dtype=np.float32)
    return StageRecipe(
        {f"w{i}": form for i, form in zip(range(LAYERS), forms, strict=False) if form is not None},
        smoothing,
        {smoothing_key(one.name): scale for one in smoothing},
    )


@pytest.mark.parametrize("target", TARGETS)
def test_few_weights_are_in_memory_at_once(target: str, new_graph: Any, tmp_path: Path) -> None:
    """Sixty weights take 15 MiB in fp32. Rounding one to twice four bits needs its rows, integers, scales and
    error: about ten times its size."""
    reads = []

    def read(i: int) -> np.ndarray:
        reads.append(i)
        random = np.random.default_rng(i)
        return (random.normal(size=(SIZE, SIZE)) / SIZE**0.5).astype(np.float16)

    passes: list[Pass] = list(TARGETS[target](recipe=recipe()))
    model = chain(new_graph, read)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        save_graph(apply(model, passes), tmp_path / "g.onnx")
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert set(reads) == set(range(LAYERS))
    assert (tmp_path / "g.onnx.data").stat().st_size > LAYERS * BYTES / 5
    assert peak < 20 * BYTES < LAYERS * BYTES / 2.9


def test_lowering_for_the_cpu_reads_no_weights(new_graph: Any) -> None:
    """They are read when the file is written."""

    def read(i: int) -> np.ndarray:
        raise AssertionError(f"w{i} was read")

    apply(chain(new_graph, read), cpu_pipeline("llm", "mixed", recipe=recipe()))
