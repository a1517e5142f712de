"""`--compare`: two engines on the same data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lira_bench.accuracy.agreement import replay
from lira_bench.accuracy.compare import other_engines
from lira_bench.accuracy.worker import EngineChoice
from lira_bench.metrics import iou
from lira_runtime import Lira
from lira_runtime.rle import decode

if TYPE_CHECKING:
    from .conftest import Evaluate


def test_compare_reports_the_agreement_of_other_engines(
    evaluate: Evaluate, grounded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(grounded, "out")
    assert evaluate("gcg", "out", "--compare", "cpu-int4") == 0
    assert evaluate.same_bytes("out", grounded)
    other = evaluate.report("out/compare-cpu-int4")
    found = other["comparison"]
    assert (
        other["run"]["precision"] == "int4" and other["run"]["compared_with"] == evaluate.report("out")["run"]
    )
    for name, value in evaluate.report("out")["metrics"].items():
        entry = found["metrics"][name]
        assert (entry["this"], entry["other"]) == (value, other["metrics"][name])
        assert entry["delta"] == pytest.approx(entry["other"] - value, abs=1e-6)

    tokens, agreed, ious = 0, 0, []
    with Lira.open(evaluate.bundle, precision="int4", threads=1) as lira:
        for sample in evaluate.samples(grounded):
            (answer,) = sample["answers"]
            scene = lira.look(evaluate.data / "images" / sample["image"])
            again, chosen = replay(scene, lira.prompt(task="gcg"), answer["token_ids"])
            assert list(again.token_ids) == answer["token_ids"]
            tokens += len(chosen)
            agreed += sum(a == b for a, b in zip(chosen, answer["token_ids"], strict=True))
            pairs = zip(again.masks, answer["masks"], strict=True)
            ious += [iou(mask.binary, decode(expected["rle"])) for mask, expected in pairs]
    assert (found["tokens"], found["masks"]) == (tokens, len(ious))
    assert found["token_agreement"] == pytest.approx(agreed / tokens, abs=1e-6)
    assert found["mask_iou"] == pytest.approx(np.mean(ious), abs=1e-5)
    assert 0.95 < found["mask_iou"] < 1
    printed = capsys.readouterr().out
    assert "cpu-fp32" in printed and "cpu-int4" in printed and f"{found['mask_iou']:.4f}" in printed


def test_the_driver_is_that_of_the_target(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    this = EngineChoice(evaluate.bundle, "tensorrt", "fp16", "pycuda")
    assert other_engines("cpu-int4", this)[1] == EngineChoice(evaluate.bundle, "cpu", "int4")
    copied = Path(shutil.copytree(evaluate.bundle, tmp_path / "copy"))
    assert other_engines(str(copied), this)[1] == EngineChoice(copied, "tensorrt", "fp16", "pycuda")
    assert evaluate("gcg", "out", "--driver", "pycuda") == 2
    assert "target cpu takes no driver" in capsys.readouterr().err


def test_a_copy_of_the_bundle_agrees_completely(evaluate: Evaluate, grounded: Path) -> None:
    shutil.copytree(grounded, "out")
    shutil.copytree(evaluate.bundle, "copy")
    assert evaluate("gcg", "out", "--compare", "copy") == 0
    found = evaluate.report("out/compare-copy")["comparison"]
    assert (found["token_agreement"], found["mask_iou"]) == (1.0, 1.0)
    assert {entry["delta"] for entry in found["metrics"].values()} == {0}


@pytest.mark.parametrize(
    ("other", "said"), [("cpu-fp32", "the very engines"), ("cpu-fp4", "cpu-fp32, cpu-int4")]
)
def test_compare_with_missing_engines_is_refused(
    evaluate: Evaluate, other: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("gcg", "out", "--compare", other) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_lowering_that_is_not_good_enough_fails(
    evaluate: Evaluate, grounded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(grounded, "out")
    asked = ("gcg", "out", "--compare", "cpu-int4", "--require", "miou=0.5", "--require")
    assert evaluate(*asked, "mask_iou=0.95", "--json", "figures.json") == 0
    assert json.loads(Path("figures.json").read_text())["passed"] is True
    assert evaluate(*asked, "mask_iou=1", "--json", "-") == 2
    captured = capsys.readouterr()
    assert captured.err.strip().startswith("error: not good enough: mask_iou is 0.9")
    found = json.loads(captured.out.splitlines()[-1])
    other = evaluate.report("out/compare-cpu-int4")
    assert found["comparison"] == {"name": "cpu-int4", **other["comparison"], "counts": other["counts"]}
    assert found["metrics"] == evaluate.report("out")["metrics"] and found["passed"] is False
    miou, iou = other["metrics"]["miou"], other["comparison"]["mask_iou"]
    assert miou != found["metrics"]["miou"]  # the bound is about the other engines
    assert found["required"] == [
        {"name": "miou", "required": 0.5, "found": miou, "passed": True},
        {"name": "mask_iou", "required": 1, "found": iou, "passed": False},
    ]
    assert "cpu-int4" in captured.out and evaluate.report("out/compare-cpu-int4")["complete"] is True
    assert evaluate("gcg", "other", "--require", "recall") == 2
    assert "expected NAME=VALUE" in capsys.readouterr().err and not Path("other").exists()
