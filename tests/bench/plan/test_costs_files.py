"""The costs files of the package, compared with bundles."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from lira_bench.plan import graph_costs
from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError


@pytest.fixture(scope="module")
def bundle(nano_bundle: Path) -> Path:
    return nano_bundle


def test_the_shipped_file_equals_the_output_of_the_command(bundle: Path, tmp_path: Path) -> None:
    written = tmp_path / "lira-nano.json"
    graph_costs.main([str(bundle), "-o", str(written)])
    assert written.read_text() == (graph_costs.SHIPPED / "lira-nano.json").read_text()


def test_a_bundle_is_counted_as_its_size(bundle: Path) -> None:
    assert graph_costs.load(str(bundle)) == graph_costs.load("lira-nano")


def test_all_parameters_of_the_files_are_counted(bundle: Path) -> None:
    costs = graph_costs.load("lira-nano")
    opened = Bundle.open(bundle)
    for stage, found in costs.stages.items():
        model = onnx.load(opened.stage_file(stage), load_external_data=False)
        floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        expected = 0
        for tensor in model.graph.initializer:
            if tensor.data_type in floating:
                elements = 1
                for size in tensor.dims:
                    elements *= size
                expected += elements
        assert found.parameters == expected > 0, stage


def test_all_sizes_have_files() -> None:
    assert {"lira-2b", "lira-8b", "lira-qwen2-1.5b", "lira-nano"} <= set(graph_costs.sizes())


def test_neither_a_size_nor_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LiraError, match=r"'lira-3b' is no size and no folder; expected .*lira-2b.*a bundle"):
        graph_costs.load("lira-3b")
    with pytest.raises(LiraError, match=r"a folder without lira\.json"):
        graph_costs.load(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", 'lacks "format": "lira-costs"'),
        ('{"format": "lira-costs", "format_version": 2}', "format version 2, expected 1"),
        ('{"format": "lira-costs", "format_version": 1, "name": "x"}', "key 'model' is missing"),
    ],
)
def test_files_without_costs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr(graph_costs, "SHIPPED", tmp_path)
    (tmp_path / "lira-x.json").write_text(text)
    with pytest.raises(LiraError, match=message):
        graph_costs.load("lira-x")
