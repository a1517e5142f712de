"""Weights beside a graph are there whole, or it is said that they are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine import LiraError
from lira_engine.bundle.external_data import save_graph

resource = pytest.importorskip("resource", reason="Windows has no limits for files")
LARGE, SMALL = 1 << 20, 2048


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may be larger: a full disk, for whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def model() -> ir.Model:
    """One large weight and, behind it, a small one."""
    weights = [
        ir.Value(name=name, const_value=ir.tensor(np.ones(size, np.uint8), name=name))
        for name, size in (("large", LARGE), ("small", SMALL))
    ]
    graph = ir.Graph([], [], nodes=[], initializers=weights, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def test_saved_whole(tmp_path: Path) -> None:
    offsets: list[int] = []
    save_graph(model(), tmp_path / "a.onnx", offsets.append)
    assert offsets[0] == 0 and (tmp_path / "a.onnx.data").stat().st_size == offsets[1] + SMALL
    save_graph(
        ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10), tmp_path / "b.onnx"
    )


@pytest.mark.parametrize("size", [LARGE // 2, LARGE + SMALL // 2])
def test_a_full_disk_is_one_line(tmp_path: Path, size: int) -> None:
    """The loss of a few bytes at the end is no error to numpy."""
    with (
        room_for(size),
        pytest.raises(LiraError, match=r"a\.onnx\.data was not written whole.*free some room"),
    ):
        save_graph(model(), tmp_path / "a.onnx")
