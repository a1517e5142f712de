"""A KV cache takes memory for the rows in use, not for its capacity."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.llm_tensors import cache_output
from lira_engine.ort.device import CPU
from lira_engine.ort.kv_cache import OrtKvCache, untouched_zeros
from lira_engine.ort.session import open_session

LAYERS, SHAPE = 24, (1, 8, 4096, 128)
"""LIRA-2B's: a head's rows are 2 MiB, as large as a large page."""
NAMES = [f"{kind}_cache.{i}" for i in range(LAYERS) for kind in ("key", "value")]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with LIRA-2B's caches and nothing else."""
    inputs = [ir.val(name, dtype=ir.DataType.FLOAT, shape=SHAPE) for name in NAMES]
    nodes = [ir.node("Identity", [value]) for value in inputs]
    for name, node, value in zip(NAMES, nodes, inputs, strict=True):
        node.outputs[0].name = cache_output(name)
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    graph = ir.Graph(
        inputs, [node.outputs[0] for node in nodes], nodes=nodes, opset_imports={"": 21}, name="caches"
    )
    path = tmp_path_factory.mktemp("caches") / "caches.onnx"
    ir.save(ir.Model(graph, ir_version=10), path)
    return path


def resident_bytes(array: np.ndarray) -> int:
    """Return how many bytes of an array are in memory, in whole pages."""
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    size = array.ctypes.data + array.nbytes - start
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert mincore(start, size, pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="no mincore")
def test_memory_grows_with_the_rows_in_use(graph: Path, memory: Callable[[Any], np.ndarray]) -> None:
    cache = OrtKvCache(open_session(graph, threads=1), dict.fromkeys(NAMES, SHAPE), np.float32, CPU)
    arrays = [memory(rows) for rows in cache.rows.values()]
    assert len(arrays) == 2 * LAYERS
    assert sum(map(resident_bytes, arrays)) == cache.nbytes == 0
    for rows in (100, 300):  # as passes fill it
        for array in arrays:
            array[:, :, cache.length : rows] = 7
        cache.fill(rows)
        filled = sum(array[:, :, :rows].nbytes for array in arrays)
        assert filled <= sum(map(resident_bytes, arrays)) <= 1.1 * filled
        assert cache.nbytes == sum(map(resident_bytes, arrays))
    before = sum(map(resident_bytes, arrays))
    cache.truncate(0)
    for array in arrays:
        array[:, :, :200] = 8
    assert sum(map(resident_bytes, arrays)) == before == cache.nbytes
    assert not any(array[:, :, 300:].any() for array in arrays)


def test_another_system_gets_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert not untouched_zeros((2, 3), np.float32).any()
