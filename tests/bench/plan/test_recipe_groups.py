"""Plans of a recipe: the weights of a bundle by the form that they have there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lira_bench.plan import devices
from lira_bench.plan.cli import plan
from lira_bench.plan.devices import DEVICES
from lira_bench.plan.graph_costs import Matrix, count_bundle
from lira_bench.plan.measured import AVX2
from lira_bench.plan.precision import Build, Group, recipe_precisions, stage_precision
from lira_bench.plan.recipe_groups import count_groups, groups_of
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.recipe import Form, Recipe, StageRecipe, sources_of, write_recipe
from lira_engine.errors import LiraError
from lira_engine.lowering.weights import constant_matmuls

FORMS = {"llm": Form("int4", 32), "semantic_encoder": Form("w8a8", range=(-1.0, 1.0), dynamic=True)}


@pytest.fixture(scope="module")
def folder(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe: all matmuls of two stages, the rest floats."""
    bundle = Bundle.open(nano_bundle, verify="sizes")
    stages = {
        stage: StageRecipe({m.name: form for m in constant_matmuls(ir.load(bundle.stage_file(stage)).graph)})
        for stage, form in FORMS.items()
    }
    made = tmp_path_factory.mktemp("recipe")
    write_recipe(Recipe(bundle.manifest.name, sources_of(bundle), stages), made)
    return made


def test_all_weights_of_a_form_are_one_group(nano_bundle: Path, folder: Path) -> None:
    costs, groups = count_bundle(nano_bundle), groups_of(str(nano_bundle), folder)
    assert set(groups) == set(costs.stages)
    for stage, form in FORMS.items():
        (one,) = groups[stage]
        assert (one.form, one.block) == (form.kind, form.block or 0)
        assert one.matrices == costs.stages[stage].matrices
        assert one.operations == costs.stages[stage].operations["linear"]
    assert groups["pixel_encoder"] == groups["sefe"] == ()


def test_a_small_weight_is_stored_as_said_and_computed_as_a_float() -> None:
    weights = [onnx.numpy_helper.from_array(np.zeros((64 * n * n, 256), np.float32), f"w{n}") for n in (1, 2)]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["S", size])
        for name, size in (("x", 64), ("y", 256))
    )
    h = helper.make_tensor_value_info("h", TensorProto.FLOAT, ["S", 256])
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["h"]), helper.make_node("MatMul", ["h", "w2"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], weights, value_info=[h])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    forms = {name: Form("int4", 32) for name in ("w1", "w2")}
    (found,) = count_groups(model, StageRecipe(forms))
    assert found.matrices == (Matrix(64, 256, 1), Matrix(256, 256, 1))
    assert found.operations == {"S": 2 * 256 * 256}


def test_a_recipe_of_a_whole_stage_is_its_precision(nano_bundle: Path, folder: Path) -> None:
    costs = count_bundle(nano_bundle)
    found = Build("mixed", groups=groups_of(str(nano_bundle), folder)).stages(costs.stages, AVX2)
    alike = {
        "llm": stage_precision("llm", "int4", AVX2),
        "pixel_encoder": stage_precision("sefe", "fp32", AVX2),
    }
    alike["semantic_encoder"] = stage_precision("semantic_encoder", "int4", AVX2)
    for stage, expected in alike.items():
        own, vocab = costs.stages[stage], costs.model.vocab_size
        assert found[stage].weight_bytes(own) == expected.weight_bytes(own)
        assert found[stage].second_copy_bytes(own, vocab) == expected.second_copy_bytes(own, vocab)
        for rows in (1.0, 64.0):
            dims = {"S": rows, "K": 1.0, "context": rows, "T": 1.0, "M": 64.0}
            counted = [one for one in found[stage].work(stage, own, dims) if one[2]]
            assert counted == [one for one in expected.work(stage, own, dims) if one[2]]


def test_weights_without_a_form_stay_floats(nano_bundle: Path) -> None:
    costs = count_bundle(nano_bundle).stages["llm"]
    one = replace(costs.matrices[0], count=1)
    terms = {"S": 2 * one.inputs * one.outputs}
    found = recipe_precisions({"llm": (Group("int8", 32, (one,), terms),)}, AVX2)["llm"]
    dims = {"S": 4.0, "K": 1.0, "context": 4.0}
    linear = {form: count for work, form, count in found.work("llm", costs, dims) if "attention" not in work}
    assert linear == {"2xint4": 4 * terms["S"], "fp32": costs.flops(dims)["linear"] - 4 * terms["S"]}
    elements = one.inputs * one.outputs
    floats = stage_precision("llm", "fp32", AVX2).weight_bytes(costs) - 4 * elements
    many = found.second_copy_bytes(costs, vocab_size=0)
    assert many == 4 * sum(m.inputs * m.outputs * m.count for m in costs.matrices), "fed in fp32"
    on_gpu = recipe_precisions({"llm": (Group("int4", 64, (one,), terms),)}, DEVICES["thor"])["llm"]
    assert found.many_rows and not on_gpu.many_rows, "a CPU's engines alone have a second copy"
    assert found.weight_bytes(costs) == floats + 2 * elements * (16 + 4) // 32


def test_fp8_is_refused_where_there_is_none(nano_bundle: Path) -> None:
    costs = count_bundle(nano_bundle).stages["llm"]
    groups = {"llm": (Group("fp8", 0, costs.matrices, {}),)}
    assert recipe_precisions(groups, DEVICES["thor"])["llm"].groups == groups["llm"]
    for device in (DEVICES["orin-nano"], AVX2):
        with pytest.raises(LiraError, match=f"has fp8 in llm; {device.name} does not compute in it"):
            recipe_precisions(groups, device)


def test_the_command_takes_a_recipe(
    nano_bundle: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(devices, "find", lambda name: AVX2)
    monkeypatch.setenv("COLUMNS", "200")
    written = tmp_path / "plan.json"
    plan(str(nano_bundle), device="this-machine", recipe=folder, json=written)
    assert json.loads(written.read_text())["precision"] == "mixed"
    text = capsys.readouterr().out
    assert "int4, blocks of 32, the others fp32; w8a8 from 80 rows on" in text
    assert "w8a8, the others fp32" in text
    with pytest.raises(LiraError, match="expected its folder in place of 'lira-nano'"):
        plan("lira-nano", device="this-machine", recipe=folder)
    with pytest.raises(LiraError, match=r"holds no recipe\.json"):
        plan(str(nano_bundle), device="this-machine", recipe=tmp_path)
