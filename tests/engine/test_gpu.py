"""Build, verify and ask lira-nano on an NVIDIA GPU. Run by `make test-gpu`; a target that cannot run is
skipped by name, with what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lira_engine import doctor
from lira_engine.build import build
from lira_engine.verify import verify_engines
from lira_runtime import Lira
from lira_runtime.verify_answer import check_answer

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parent.parent.parent
TARGETS = ("cuda", "tensorrt", "tensorrt-rtx")


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """A target that `lira-edge doctor` says runs here."""
    name: str = request.param
    rows = {row[0]: row[1:] for row in dict(doctor.examine())["targets"]}
    runs, note = rows[name][:2]
    if runs != "yes":
        pytest.skip(f"target {name}: {note}")
    return name


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_gpu_engines_answer_as_the_portable_graphs(
    target: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The engines pass their check vectors; a grounded answer equals the portable graphs', int4's aside."""
    if (target, precision) == ("tensorrt", "int4"):
        pytest.skip("target tensorrt takes int4 weights in blocks of 64 inputs, lira-nano has none")
    bundle = tmp_path / "nano"
    shutil.copytree(request.getfixturevalue("nano_bundle"), bundle)  # exported where something runs
    build(bundle, target, precision)
    found = verify_engines(bundle, target, precision, ask=check_answer)
    assert found.tokens and (precision == "int4" or found.agree == found.tokens)
    image = ROOT / "assets" / "sample.png"
    with Lira.open(bundle, target, precision) as ours, Lira.open(bundle, "portable") as portable:
        answer, expected = (lira.look(image).ask(task="gcg") for lira in (ours, portable))
        assert answer.text == expected.text or precision == "int4"
        masks = [phrase.mask.binary for phrase in answer.phrases if phrase.mask is not None]
        assert masks and all(mask.any() for mask in masks)
        if precision != "int4":
            wanted = [phrase.mask.binary for phrase in expected.phrases if phrase.mask is not None]
            for mask, other in zip(masks, wanted, strict=True):
                assert np.logical_and(mask, other).sum() / np.logical_or(mask, other).sum() > 0.95
