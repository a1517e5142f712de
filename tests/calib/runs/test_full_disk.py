"""A disk that fills while a calibration keeps what it computed: one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lira_calib.runs import layered, stage_runs
from lira_engine.errors import LiraError

ARRAYS = {"hidden_states": np.ones(1 << 16, np.float32), "logits": np.ones(9, np.float32)}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npy", layered._write),
        ("a.npz", layered._write),
        ("a.safetensors", partial(stage_runs.write_arrays, where="llm", temporary=True)),
        ("a.safetensors", partial(stage_runs.write_arrays, where="llm")),
    ],
)
def test_a_full_disk_is_an_error_of_one_line(
    tmp_path: Path,
    name: str,
    write: Callable[..., None],
    room_for: Callable[[int], AbstractContextManager[None]],
) -> None:
    refused = pytest.raises(LiraError, match=f"{name} cannot be written: .*(free some room|take a disk)")
    with room_for(1 << 14), refused:
        write(tmp_path / name, ARRAYS)
