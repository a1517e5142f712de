"""A build records the outputs of the lowered language model, or says why it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.engines import lowered_outputs
from lira_engine.engines.accuracy import rms_error
from lira_engine.errors import LiraError
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline
from lira_engine.ort import lowered_reference

pytestmark = pytest.mark.portable


@pytest.fixture(scope="module")
def bundle(nano_bundle: Path) -> Bundle:
    return Bundle.open(nano_bundle)


@pytest.fixture(scope="module")
def lowered(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = tmp_path_factory.mktemp("lowered") / "llm.onnx"
    save_graph(
        apply(ir.load(bundle.stage_file("llm")), tensorrt_pipeline("llm", "int4", "decomposed", block=32)),
        graph,
    )
    return graph


def test_outputs_are_recorded(bundle: Bundle, lowered: Path, tmp_path: Path) -> None:
    lowered_reference.record_in_process(bundle, lowered, "int4", tmp_path)
    kept = lowered_outputs.read(tmp_path, "llm")
    wanted = bundle.check_vectors("llm").outputs
    assert kept.keys() == {"logits", "hidden_states"}
    assert all(0.01 < rms_error(array, wanted[name]) < 0.2 for name, array in kept.items())
    assert lowered_outputs.check("it", kept, kept) == {"logits": 0.0, "hidden_states": 0.0}
    moved = {**kept, "logits": kept["logits"] * np.float32(1.03)}
    reason = "it, beside its own lowered graph, is wrong: output logits differs .* by 3.0e-02 of its RMS"
    with pytest.raises(LiraError, match=reason):
        lowered_outputs.check("it", moved, kept)


def test_a_wrong_lowered_graph_ends_the_build(bundle: Bundle, lowered: Path, tmp_path: Path) -> None:
    model = ir.load(lowered)
    for name, value in model.graph.initializers.items():
        if name.endswith(".scales") and value.const_value is not None:
            value.const_value = ir.tensor(-value.const_value.numpy(), name=name)
    save_graph(model, tmp_path / "llm.onnx")
    with pytest.raises(
        LiraError, match=r"the lowered graph of llm is wrong: output \w+ differs .* was kept$"
    ):
        lowered_reference.record_in_process(bundle, tmp_path / "llm.onnx", "int4", tmp_path)
    assert not (tmp_path / lowered_outputs.file_name("llm")).exists()


def test_a_process_that_dies_is_an_error(bundle: Bundle, lowered: Path, tmp_path: Path) -> None:
    with pytest.raises(LiraError, match=r"the lowered graph of llm could not be run \(.*\): close other pro"):
        lowered_reference.record_in_process(bundle, lowered, "int4", tmp_path / "no such folder")


def test_nothing_is_recorded_without_onnx_runtime(
    bundle: Bundle, lowered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("package", "session", "stage", "llm"):
        monkeypatch.delitem(sys.modules, f"lira_engine.ort.{module}", raising=False)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "onnxruntime", None)
        lowered_reference.record(bundle, lowered, "int4", tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_recorded_if_onnx_runtime_is_too_old_for_the_graph(
    bundle: Bundle, lowered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = tensorrt_pipeline("llm", "int4", "cache_update", block=32)
    save_graph(apply(ir.load(bundle.stage_file("llm")), passes), tmp_path / "llm.onnx")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    lowered_reference.record(bundle, tmp_path / "llm.onnx", "int4", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    lowered_reference.record(bundle, lowered, "int4", tmp_path / "out")
    assert (tmp_path / "out" / lowered_outputs.file_name("llm")).is_file()


def test_a_graph_that_does_not_load_is_an_error(bundle: Bundle, lowered: Path, tmp_path: Path) -> None:
    model = ir.load(lowered)
    next(node for node in model.graph if node.op_type == "Softmax").op_type = "Softest"
    save_graph(model, tmp_path / "llm.onnx")
    with pytest.raises(LiraError, match=r"cannot load .*llm\.onnx"):
        lowered_reference.record(bundle, tmp_path / "llm.onnx", "int4", tmp_path)
