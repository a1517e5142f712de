"""Outputs of a lowered stage on the check vectors, which its compiled engine must reproduce.

int4 weights, and all that a recipe rounds, move outputs so far from the fp32 ones that a kernel which is
wrong in some rows could go unnoticed. ONNX Runtime's outputs, computed at the build with the same integers,
reveal it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lira_engine.bundle.arrays import read_archive
from lira_engine.engines.accuracy import check_outputs


def file_name(stage: str) -> str:
    """Return the name of the file in an engine folder; not every stage has one."""
    return f"{stage}.expected.npz"


def write(folder: Path, stage: str, outputs: Mapping[str, np.ndarray]) -> None:
    """Write outputs, by name, into an engine folder."""
    arrays: dict[str, Any] = dict(outputs)
    with open(folder / file_name(stage), "wb") as file:
        np.savez(file, **arrays)


def read(folder: Path, stage: str) -> dict[str, np.ndarray]:
    """Return the outputs by name. Raises LiraError if the file cannot be read."""
    return read_archive(folder / file_name(stage), "build the engines again")


def check(what: str, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the error of each output. Raises LiraError, which begins with `what`, if one is above the
    tolerance of fp16: both sides have the same weights."""
    return check_outputs(f"{what}, beside its own lowered graph,", "fp16", found, expected, {})
