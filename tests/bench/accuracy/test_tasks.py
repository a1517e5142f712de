"""`lira-edge eval` on lira-nano: the tasks, and refused options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lira_bench.accuracy.evaluation import evaluate_request
from lira_bench.accuracy.request import Request
from lira_bench.accuracy.run import Progress
from lira_bench.metrics import average_precision, iou
from lira_engine.main import main
from lira_runtime import Lira
from lira_runtime.rle import decode

if TYPE_CHECKING:
    from .conftest import Evaluate


def test_refseg_matches_an_independent_count(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("refseg", "out", "--limit", 9, "--json", "-") == 0
    found = evaluate.report("out")
    assert found["counts"] == {"entries": 9, "evaluated": 9, "left_out": 0}
    assert found["run"]["limit"] == 9 and found["complete"] is True
    refs = json.loads((evaluate.data / "refs.json").read_text())
    truths = {a["id"]: a for a in json.loads((evaluate.data / "instances.json").read_text())["annotations"]}
    wanted = [truths[ref["ann_id"]]["segmentation"] for ref in refs for _ in ref["sentences"]]
    both, either, ious = 0, 0, []
    for sample, truth in zip(evaluate.samples("out"), wanted, strict=False):
        mask, expected = decode(sample["answers"][0]["masks"][0]["rle"]), decode(truth)
        both, either = both + int((mask & expected).sum()), either + int((mask | expected).sum())
        ious.append(iou(mask, expected))
    assert found["metrics"]["ciou"] == pytest.approx(both / either, abs=1e-6)
    assert found["metrics"]["giou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert found["metrics"]["ciou"] > 0.7  # a broken pipeline is far below; how good it is: docs/eval.md
    printed = capsys.readouterr().out
    assert f"{found['metrics']['ciou']:.4f}" in printed and "wrote out/report.json" in printed
    *_, again, last = printed.splitlines()
    asked = f"{evaluate.bundle} --data {evaluate.data} --task refseg --output out --limit 9 --threads 1"
    assert again == f"reproduce: lira-edge eval {asked} --json -"
    figures = json.loads(last)
    assert (figures["metrics"], figures["counts"]) == (found["metrics"], found["counts"])
    asked_of = [figures[key] for key in ("bundle", "target", "precision", "task", "protocol", "output")]
    assert asked_of == ["lira-nano", "cpu", "fp32", "refseg", "strict", "out"]
    assert figures["machine"]["threads"] == 1 and figures["peak_rss_mib"] > 50
    assert (figures["left_out"], figures["required"], figures["passed"]) == ([], [], True)


def test_gcg_matches_an_independent_count(evaluate: Evaluate, grounded: Path) -> None:
    metrics = evaluate.report(grounded)["metrics"]
    truth = json.loads((evaluate.data / "gcg.json").read_text())
    objects = [[g["rle_masks"][0] for g in entry["groundings"].values()] for entry in truth]
    assert metrics["images"] == len(truth) and metrics["objects"] == sum(map(len, objects))
    answers = [sample["answers"][0] for sample in evaluate.samples(grounded)]
    found = [[answer["masks"][p["mask"]]["rle"] for p in answer["phrases"]] for answer in answers]
    assert metrics["masks"] == sum(map(len, found))
    assert metrics["ap50"] == pytest.approx(average_precision(found, objects), abs=1e-6)
    assert 0.7 < metrics["recall"] <= 1 and metrics["phrase_recall"] <= metrics["recall"]
    assert 0.7 < metrics["miou"] < 1
    first = evaluate.samples(grounded)[0]
    for i, j, value in first["scores"]["matched"]:
        assert iou(decode(found[0][i]), decode(objects[0][j])) == pytest.approx(value, abs=1e-6)


def test_vqa_and_pope_match_an_independent_count(evaluate: Evaluate) -> None:
    assert evaluate("vqa", "vqa", "--limit", 20) == 0
    asked = [json.loads(line) for line in (evaluate.data / "vqa.jsonl").read_text().splitlines()[:20]]
    right = [
        s["answers"][0]["text"] == q["answer"] for s, q in zip(evaluate.samples("vqa"), asked, strict=True)
    ]
    assert evaluate.report("vqa")["metrics"] == {"accuracy": round(float(np.mean(right)), 6), "questions": 20}
    assert np.mean(right) > 0.7

    assert evaluate("pope", "pope") == 0
    labels = [json.loads(line)["label"] for line in (evaluate.data / "pope.jsonl").read_text().splitlines()]
    said = [sample["answers"][0]["text"].lower() for sample in evaluate.samples("pope")]
    metrics = evaluate.report("pope")["metrics"]
    assert metrics["questions"] == len(labels) and metrics["unclear"] == 0
    assert metrics["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(said, labels, strict=True)]))
    assert metrics["yes_share"] == pytest.approx(said.count("yes") / len(said))
    assert metrics["f1"] > 0.7


def test_attreval_matches_an_independent_count(evaluate: Evaluate) -> None:
    assert evaluate("attreval", "out") == 0
    metrics, of_pairs, of_words = evaluate.report("out")["metrics"], [], []
    for sample in evaluate.samples("out"):
        (of_words if "ranked" in sample["scores"] else of_pairs).append(sample)
    both_right = [[a["text"] for a in sample["answers"]] == ["Yes", "No"] for sample in of_pairs]
    assert metrics["all.paired"] == pytest.approx(np.mean(both_right), abs=1e-6)
    assert metrics["all.pairs"] == len(of_pairs) == sum(metrics[f"{k}.pairs"] for k in kinds(of_pairs))
    colors = [sample for sample in of_words if sample["scores"]["kind"] == "color"]
    best = [sample["scores"]["ranked"][0][0] in sample["scores"]["answers"] for sample in colors]
    assert metrics["color.top1"] == pytest.approx(np.mean(best), abs=1e-6)
    assert metrics["color.top1"] > 2 * metrics["color.chance"] == pytest.approx(2 / 6, abs=1e-5)
    assert metrics["color.top1"] <= metrics["color.top3"] <= metrics["color.top5"]
    with Image.open("out/attributes.png") as chart:
        pixels = np.asarray(chart.convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] / 2 > 300
    assert (pixels == (25, 192, 138)).all(axis=2).sum() > 1000  # true words among the best five


def kinds(of: list[dict[str, Any]]) -> set[str]:
    return {sample["scores"]["kind"] for sample in of}


@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        ("caption", (), "there are: refseg, gcg, vqa, attreval, pope, chair"),
        ("gcg", ("--workers", "4"), "expected ray"),
        ("gcg", ("--instruction", "Be short."), "short answers"),
        ("vqa", ("--split", "val"), "--split is for refseg and gcg"),
        ("gcg", ("--split", "val"), "has no splits"),
        ("gcg", ("--ilvc", "maybe"), "expected one of auto, on, off, plain"),
        ("gcg", ("--images", "nowhere"), "no such folder"),
        ("gcg", ("--precision", "int8"), "lira-edge build"),
        ("gcg", ("--limit", "0"), "limit"),
        ("gcg", ("--json", "."), "--json . is a folder"),
        ("gcg", ("--max-tiles", "13"), "max_tiles is 13; expected a whole number from 1 to 12"),
        ("gcg", ("--protocol", "paper"), "--protocol is 'paper', expected strict or authors"),
        ("vqa", ("--benchmark", "gqa"), "--benchmark is for --protocol authors with --task vqa"),
        ("pope", ("--protocol", "authors", "--benchmark", "gqa"), "--benchmark is for"),
        ("vqa", ("--protocol", "authors", "--benchmark", "mme"), "expected one of vqav2, okvqa, textvqa"),
    ],
)
def test_wrong_arguments_are_refused(
    evaluate: Evaluate, task: str, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(task, "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_evaluation_from_python(evaluate: Evaluate, grounded: Path) -> None:
    done: list[tuple[str, int, int]] = []

    @contextmanager
    def bar(title: str) -> Iterator[Progress]:
        yield lambda so_far, total: done.append((title, so_far, total))

    request = Request(evaluate.bundle, evaluate.data, "gcg", Path("out"), limit=1, threads=1)
    result = evaluate_request(request, bar)
    assert result.evaluation.counts == {"entries": 1, "evaluated": 1, "left_out": 0}
    assert evaluate.samples("out") == evaluate.samples(grounded)[:1]
    assert done == [("cpu-fp32", 0, 1), ("cpu-fp32", 1, 1)]
    assert result.rated == result.evaluation.metrics == evaluate.report("out")["metrics"]


def test_ilvc_off_is_another_evaluation(evaluate: Evaluate, grounded: Path) -> None:
    assert evaluate("gcg", "out", "--ilvc", "off", "--limit", 2) == 0
    assert evaluate.report("out")["run"]["ilvc"] == "off"
    for sample in evaluate.samples("out"):
        assert not sample["answers"][0]["regions"]
    assert all(sample["answers"][0]["regions"] for sample in evaluate.samples(grounded))


def test_each_image_is_encoded_once_and_the_folder_has_a_default(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    look = Lira.look
    monkeypatch.setattr(Lira, "look", lambda self, image: seen.append(image) or look(self, image))
    typed = ["eval", evaluate.bundle, "--data", evaluate.data, "--task", "pope", "--limit", 20]
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in typed])
    assert stopped.value.code == 0
    found = evaluate.samples("eval-bundle-pope-cpu-fp32")
    assert len(found) == 20 and len(seen) == len({sample["image"] for sample in found}) < 20


def test_neither_file_has_times_or_paths(evaluate: Evaluate, grounded: Path) -> None:
    for name in ("report.json", "samples.jsonl"):
        text = (grounded / name).read_text(encoding="utf-8")
        assert str(evaluate.data) not in text and os.sep + "tmp" not in text
        assert "seconds" not in text and "timings" not in text
