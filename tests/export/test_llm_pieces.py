"""The language model's graph, run piece by piece from the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lira_engine.bundle.bundle import Bundle
from lira_export.export import export_checkpoint
from lira_export.llm_pieces import run_in_pieces


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("pieces") / "bundle"))


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_pieces_give_the_outputs_of_the_whole(bundle: Bundle, at_once: int) -> None:
    vectors, path = bundle.check_vectors("llm"), bundle.stage_file("llm")
    before = set(path.parent.iterdir())
    steps = list(run_in_pieces(path, 2, vectors.inputs, at_once))
    assert [done for done, _ in steps] == ([1, 2] if at_once == 1 else [2])
    assert set(path.parent.iterdir()) == before
    for name, expected in vectors.outputs.items():
        np.testing.assert_allclose(steps[-1][1][name], expected, rtol=0, atol=4e-6)


def test_a_wrong_weight_of_a_middle_layer_changes_the_outputs(bundle: Bundle, tmp_path: Path) -> None:
    """The pieces run what lies on the disk."""
    model = onnx.load(bundle.stage_file("llm"))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "layers.0.down")
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "llm.onnx")
    vectors = bundle.check_vectors("llm")
    *_, (_, found) = run_in_pieces(tmp_path / "llm.onnx", 2, vectors.inputs)
    assert np.abs(found["logits"] - vectors.outputs["logits"]).max() > 0.01
