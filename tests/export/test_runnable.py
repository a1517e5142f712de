"""The checks of an export in an ONNX Runtime that is too old for portable graphs, as on Python 3.10."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.accuracy import relative_error
from lira_engine.ort.stage import OrtStage
from lira_engine.system.extras import PORTABLE_FROM
from lira_export.llm_pieces import run_in_pieces
from lira_export.runnable import runnable


@pytest.fixture
def bundle(nano_bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(nano_bundle, tmp_path / "bundle"), verify="sizes")


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lira_export.runnable.version", lambda: (1, 20))


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "llm"])
def test_an_older_onnxruntime_runs_the_lowered_graph(bundle: Bundle, stage: str) -> None:
    before = sorted(os.listdir(bundle.path))
    path, vectors = bundle.stage_file(stage), bundle.check_vectors(stage)
    with runnable(path, stage) as file, OrtStage(stage, file, bundle.manifest.stages[stage]) as runner:
        graph = onnx.load(file, load_external_data=False)
        assert next(entry.version for entry in graph.opset_import if not entry.domain) == 21
        found = runner.run(vectors.inputs)
    for name, expected in vectors.outputs.items():
        assert relative_error(found[name], expected) < 1e-5
    assert sorted(os.listdir(bundle.path)) == before


@pytest.mark.usefixtures("old")
def test_an_older_onnxruntime_runs_the_language_model_in_lowered_pieces(bundle: Bundle) -> None:
    before = sorted(os.listdir(bundle.path))
    vectors = bundle.check_vectors("llm")
    layers = bundle.manifest.model.num_layers
    *_, (done, found) = run_in_pieces(bundle.stage_file("llm"), layers, vectors.inputs)
    assert done == layers
    for name, expected in vectors.outputs.items():
        assert relative_error(found[name], np.asarray(expected)) < 1e-5
    assert sorted(os.listdir(bundle.path)) == before


@pytest.mark.parametrize("new", [PORTABLE_FROM, (2, 0)])
def test_a_newer_onnxruntime_runs_the_graph_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: tuple[int, int]
) -> None:
    monkeypatch.setattr("lira_export.runnable.version", lambda: new)
    with runnable(tmp_path / "sefe.onnx", "sefe") as file:
        assert file == tmp_path / "sefe.onnx"
