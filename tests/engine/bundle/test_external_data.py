"""Weights are written beside their graph whole, or an error says that they were not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine import LiraError
from lira_engine.bundle.external_data import save_graph

RoomFor = Callable[[int], AbstractContextManager[None]]

LARGE, SMALL = 1 << 20, 2048


def model() -> ir.Model:
    """Return a model with a large weight, then a small one."""
    weights = [
        ir.Value(name=name, const_value=ir.tensor(np.ones(size, np.uint8), name=name))
        for name, size in (("large", LARGE), ("small", SMALL))
    ]
    graph = ir.Graph([], [], nodes=[], initializers=weights, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def test_weights_are_written_whole(tmp_path: Path) -> None:
    offsets: list[int] = []
    save_graph(model(), tmp_path / "a.onnx", offsets.append)
    assert offsets[0] == 0 and (tmp_path / "a.onnx.data").stat().st_size == offsets[1] + SMALL
    save_graph(
        ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10), tmp_path / "b.onnx"
    )


@pytest.mark.parametrize("size", [LARGE // 2, LARGE + SMALL // 2])
def test_a_full_disk_is_an_error_of_one_line(tmp_path: Path, size: int, room_for: RoomFor) -> None:
    """numpy raises nothing if only the last few bytes are lost."""
    with (
        room_for(size),
        pytest.raises(LiraError, match=r"a\.onnx\.data was not written whole.*free some room"),
    ):
        save_graph(model(), tmp_path / "a.onnx")
