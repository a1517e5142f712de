"""What a lowered language model answers on the check vectors: the engine that was made of it is held to that.

Four bits move the outputs so far from the fp32 ones that a kernel which is wrong at some rows could hide
there. The same weights, computed by ONNX Runtime at the build, leave no such room.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lira_engine.engines.accuracy import check_outputs


def file_name(stage: str) -> str:
    """In an engine folder; not every stage has one."""
    return f"{stage}.expected.npz"


def write(folder: Path, stage: str, outputs: Mapping[str, np.ndarray]) -> None:
    """Keep outputs, by name, in an engine folder."""
    arrays: dict[str, Any] = dict(outputs)
    with open(folder / file_name(stage), "wb") as file:
        np.savez(file, **arrays)


def read(folder: Path, stage: str) -> dict[str, np.ndarray]:
    """The outputs by name."""
    with np.load(folder / file_name(stage), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def check(what: str, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The error of each output. Raises LiraError, which begins with `what`, if an engine's outputs are
    further from those of the same weights than roundings to fp16 bring them."""
    return check_outputs(f"{what}, beside its own lowered graph,", "fp16", found, expected, {})
