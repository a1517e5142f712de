"""`lira-edge eval` on lira-nano, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lira_bench.accuracy import ray_workers, run
from lira_bench.accuracy.agreement import replay
from lira_bench.metrics import average_precision, iou
from lira_engine import extras
from lira_engine.errors import LiraError
from lira_engine.main import main
from lira_runtime import Lira
from lira_runtime.rle import decode

MAIN = [sys.executable, "-c", "from lira_engine.main import main; main()"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(bundle: Path, data: Path, task: str, out: str | Path, *more: object) -> list[str]:
    arguments = ["eval", bundle, "--data", data, "--task", task, "-o", out, "--threads", 1, *more]
    return [str(argument) for argument in arguments]


def evaluate(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(command(*arguments))
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def report(out: str | Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(out, "report.json").read_text(encoding="utf-8"))
    return content


def samples(out: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def same_bytes(one: str | Path, other: str | Path) -> bool:
    names = ("report.json", "samples.jsonl")
    return all(Path(one, name).read_bytes() == Path(other, name).read_bytes() for name in names)


@pytest.fixture(scope="module")
def grounded(accuracy_bundle: Path, accuracy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of grounded captions, done in one go."""
    out = tmp_path_factory.mktemp("grounded") / "out"
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", out) == 0
    return out


# --- the five tasks -----------------------------------------------------------------------------------


def test_refseg(accuracy_bundle: Path, accuracy_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(accuracy_bundle, accuracy_data, "refseg", "out", "--limit", 9) == 0
    found = report("out")
    assert found["counts"] == {"entries": 9, "evaluated": 9, "left_out": 0}
    assert found["run"]["limit"] == 9 and found["complete"] is True
    refs = json.loads((accuracy_data / "refs.json").read_text())
    truths = {a["id"]: a for a in json.loads((accuracy_data / "instances.json").read_text())["annotations"]}
    wanted = [truths[ref["ann_id"]]["segmentation"] for ref in refs for _ in ref["sentences"]]
    both, either, ious = 0, 0, []
    for sample, truth in zip(samples("out"), wanted, strict=False):
        mask, expected = decode(sample["answers"][0]["masks"][0]["rle"]), decode(truth)
        both, either = both + int((mask & expected).sum()), either + int((mask | expected).sum())
        ious.append(iou(mask, expected))
    assert found["metrics"]["ciou"] == pytest.approx(both / either, abs=1e-6)
    assert found["metrics"]["giou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert found["metrics"]["ciou"] > 0.7  # a broken pipeline is far below; how good it is: docs/eval.md
    printed = capsys.readouterr().out
    assert f"{found['metrics']['ciou']:.4f}" in printed and "wrote out/report.json" in printed


def test_gcg(grounded: Path, accuracy_data: Path) -> None:
    metrics = report(grounded)["metrics"]
    truth = json.loads((accuracy_data / "gcg.json").read_text())
    objects = [[g["rle_masks"][0] for g in entry["groundings"].values()] for entry in truth]
    assert metrics["images"] == len(truth) and metrics["objects"] == sum(map(len, objects))
    answers = [sample["answers"][0] for sample in samples(grounded)]
    found = [[answer["masks"][p["mask"]]["rle"] for p in answer["phrases"]] for answer in answers]
    assert metrics["masks"] == sum(map(len, found))
    assert metrics["ap50"] == pytest.approx(average_precision(found, objects), abs=1e-6)
    assert 0.7 < metrics["recall"] <= 1 and metrics["phrase_recall"] <= metrics["recall"]
    assert 0.7 < metrics["miou"] < 1
    first = samples(grounded)[0]
    for i, j, value in first["scores"]["matched"]:
        assert iou(decode(found[0][i]), decode(objects[0][j])) == pytest.approx(value, abs=1e-6)


def test_vqa_and_pope(accuracy_bundle: Path, accuracy_data: Path) -> None:
    assert evaluate(accuracy_bundle, accuracy_data, "vqa", "vqa", "--limit", 20) == 0
    asked = [json.loads(line) for line in (accuracy_data / "vqa.jsonl").read_text().splitlines()[:20]]
    right = [s["answers"][0]["text"] == q["answer"] for s, q in zip(samples("vqa"), asked, strict=True)]
    assert report("vqa")["metrics"] == {"accuracy": round(float(np.mean(right)), 6), "questions": 20}
    assert np.mean(right) > 0.7

    assert evaluate(accuracy_bundle, accuracy_data, "pope", "pope") == 0
    labels = [json.loads(line)["label"] for line in (accuracy_data / "pope.jsonl").read_text().splitlines()]
    said = [sample["answers"][0]["text"].lower() for sample in samples("pope")]
    metrics = report("pope")["metrics"]
    assert metrics["questions"] == len(labels) and metrics["unclear"] == 0
    assert metrics["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(said, labels, strict=True)]))
    assert metrics["yes_share"] == pytest.approx(said.count("yes") / len(said))
    assert metrics["f1"] > 0.7


def test_attreval(accuracy_bundle: Path, accuracy_data: Path) -> None:
    assert evaluate(accuracy_bundle, accuracy_data, "attreval", "out") == 0
    metrics, of_pairs, of_words = report("out")["metrics"], [], []
    for sample in samples("out"):
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


# --- going on -----------------------------------------------------------------------------------------


def test_a_killed_evaluation_goes_on_to_the_same_bytes(
    accuracy_bundle: Path, accuracy_data: Path, grounded: Path
) -> None:
    asked = command(accuracy_bundle, accuracy_data, "gcg", "out")
    process = subprocess.Popen([*MAIN, *asked], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    grown = Path("out/samples.jsonl")
    deadline = time.monotonic() + 60
    while not (grown.is_file() and grown.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert report("out")["complete"] is False
    before = grown.read_bytes()
    assert 2 <= before.count(b"\n") < len(samples(grounded))
    with grown.open("ab") as file:
        file.write(b'{"item": "gcg.json[5]", "im')
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out") == 0
    assert same_bytes("out", grounded)
    assert grown.read_bytes().startswith(before[: before.rfind(b"\n") + 1])


def test_a_finished_evaluation_asks_nothing_again(
    accuracy_bundle: Path, accuracy_data: Path, grounded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(grounded, "out")

    def refuse(*_: object) -> Iterator[Any]:
        raise AssertionError("asked again")

    monkeypatch.setattr(run, "_in_this_process", refuse)
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out") == 0
    assert same_bytes("out", grounded)


def test_another_evaluation_into_the_same_folder(
    accuracy_bundle: Path, accuracy_data: Path, grounded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(grounded, "out")
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out", "--precision", "int4") == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "precision fp32, this one has int4" in error and "--overwrite" in error
    assert same_bytes("out", grounded)
    changed = Path("changed")
    shutil.copytree(accuracy_data, changed)
    grown = json.loads((changed / "gcg.json").read_text())
    (changed / "gcg.json").write_text(json.dumps(grown[:2]))
    assert evaluate(accuracy_bundle, changed, "gcg", "out") == 2
    assert "data.gcg.json" in capsys.readouterr().err
    assert evaluate(accuracy_bundle, changed, "gcg", "out", "--overwrite") == 0
    assert report("out")["counts"]["entries"] == 2


# --- Ray ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_ray_gives_the_same_bytes(accuracy_bundle: Path, accuracy_data: Path, grounded: Path) -> None:
    more = ("--workers", "ray")
    asked = command(accuracy_bundle, accuracy_data, "gcg", "out", *more)
    done = subprocess.run([*MAIN, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same_bytes("out", grounded)
    # Engines that are not there are found out before any worker starts.
    asked = command(accuracy_bundle, accuracy_data, "gcg", "other", *more, "--precision", "int8")
    done = subprocess.run([*MAIN, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--precision int8" in done.stderr


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_an_error_in_a_ray_worker_is_one_line(accuracy_bundle: Path, accuracy_data: Path) -> None:
    bundle = Path("bundle").resolve()
    shutil.copytree(accuracy_bundle, bundle)
    engine = bundle / "engines" / "cpu-fp32" / "sefe.onnx"
    engine.write_bytes(engine.read_bytes()[:-1])
    asked = command(bundle, accuracy_data, "pope", "out", "--workers", "ray", "--limit", 2)
    done = subprocess.run([*MAIN, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sefe.onnx was altered" in done.stderr and "Traceback" not in done.stderr
    assert not samples("out")


def test_a_missing_ray_is_one_line(
    accuracy_bundle: Path,
    accuracy_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ray_workers, "missing_packages", lambda extra: [extra])
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out", "--workers", "ray") == 2
    assert extras.install_line("ray") in capsys.readouterr().err
    assert not Path("out").exists()


# --- side by side -------------------------------------------------------------------------------------


def test_compare_with_other_engines(
    accuracy_bundle: Path, accuracy_data: Path, grounded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(grounded, "out")
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out", "--compare", "cpu-int4") == 0
    assert same_bytes("out", grounded)
    other = report("out/compare-cpu-int4")
    found = other["comparison"]
    assert other["run"]["precision"] == "int4" and other["run"]["compared_with"] == report("out")["run"]
    for name, value in report("out")["metrics"].items():
        entry = found["metrics"][name]
        assert (entry["this"], entry["other"]) == (value, other["metrics"][name])
        assert entry["delta"] == pytest.approx(entry["other"] - value, abs=1e-6)

    tokens, agreed, ious = 0, 0, []
    with Lira.open(accuracy_bundle, precision="int4", threads=1) as lira:
        for sample in samples(grounded):
            (answer,) = sample["answers"]
            scene = lira.look(accuracy_data / "images" / sample["image"])
            again, chosen = replay(scene, lira.prompt(None, "gcg"), answer["token_ids"])
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


def test_compare_with_another_bundle_that_computes_the_same(
    accuracy_bundle: Path, accuracy_data: Path, grounded: Path
) -> None:
    shutil.copytree(grounded, "out")
    shutil.copytree(accuracy_bundle, "copy")
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out", "--compare", "copy") == 0
    found = report("out/compare-copy")["comparison"]
    assert (found["token_agreement"], found["mask_iou"]) == (1.0, 1.0)
    assert {entry["delta"] for entry in found["metrics"].values()} == {0}


@pytest.mark.parametrize(
    ("other", "said"), [("cpu-fp32", "the very engines"), ("cpu-fp4", "cpu-fp32, cpu-int4")]
)
def test_compare_with_what_is_not_there(
    accuracy_bundle: Path, accuracy_data: Path, other: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out", "--compare", other) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


# --- damaged data -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(accuracy_data: Path) -> Path:
    """The scenes, with something wrong in four of six."""
    folder = Path("damaged").resolve()
    shutil.copytree(accuracy_data, folder)
    grounded = json.loads((folder / "gcg.json").read_text())
    del grounded[0]["groundings"]
    (folder / "images" / grounded[1]["file_name"]).unlink()
    image = folder / "images" / grounded[2]["file_name"]
    image.write_bytes(image.read_bytes()[:2000])
    for grounding in grounded[3]["groundings"].values():
        grounding["rle_masks"] = [{"size": [2, 2], "counts": "04"}]
    (folder / "gcg.json").write_text(json.dumps(grounded))
    return folder


def test_damaged_items_are_counted_and_the_run_goes_on(
    accuracy_bundle: Path, damaged: Path, grounded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(accuracy_bundle, damaged, "gcg", "out") == 0
    found = report("out")
    assert found["counts"] == {"entries": 6, "evaluated": 2, "left_out": 4}
    reasons = {entry["item"]: entry["reason"] for entry in found["left_out"]}
    assert reasons.pop("gcg.json[2]").startswith("000002.png is damaged or cut short")
    assert reasons == {
        "gcg.json[0]": "key 'groundings' is missing",
        "gcg.json[1]": "000001.png: there is no such file, expected a JPEG, PNG, WebP or BMP image",
        "gcg.json[3]": "the mask is 2 x 2 (width x height), expected the image's 384 x 384",
    }
    assert [sample["item"] for sample in samples("out")] == [f"gcg.json[{i}]" for i in range(6)]
    assert samples("out")[4:] == samples(grounded)[4:]
    assert "left out: 4 of 6" in capsys.readouterr().out

    missing = "images/000001.png"
    shutil.copy(grounded_image(damaged, missing), damaged / missing)
    assert evaluate(accuracy_bundle, damaged, "gcg", "out") == 0
    assert report("out")["counts"]["left_out"] == 3
    assert samples("out")[1] == samples(grounded)[1]


def grounded_image(folder: Path, name: str) -> Path:
    """The scene's picture, made anew."""
    from lira_export.nano.scenes import render_scene

    picture = folder.parent / "again.png"
    Image.fromarray(render_scene(4, int(Path(name).stem)).image).save(picture)
    return picture


def test_an_image_of_another_size_than_its_annotations(accuracy_bundle: Path, accuracy_data: Path) -> None:
    images = Path("images").resolve()
    shutil.copytree(accuracy_data / "images", images)
    with Image.open(images / "000000.png") as picture:
        picture.resize((384, 200)).save(images / "000000.png")
    assert evaluate(accuracy_bundle, accuracy_data, "refseg", "out", "--images", images, "--limit", 20) == 0
    reasons = {entry["reason"] for entry in report("out")["left_out"]}
    assert reasons == {"000000.png has 384 x 200 pixels, its annotations are for 384 x 384"}
    assert report("out")["counts"]["evaluated"] > 0


def test_questions_that_cannot_be_asked_are_left_out(accuracy_bundle: Path, accuracy_data: Path) -> None:
    data = Path("data").resolve()
    data.mkdir()
    common = {"image": "000000.png", "answer": "Yes"}
    questions = ["Is there a cat in the image? Please answer yes or no.", "why " * 700]
    lines = [json.dumps({**common, "question": text}) for text in questions]
    (data / "vqa.jsonl").write_text("\n".join(lines))
    images = accuracy_data / "images"
    assert evaluate(accuracy_bundle, data, "vqa", "out", "--images", images) == 0
    (entry,) = report("out")["left_out"]
    assert entry["item"] == "vqa.jsonl:2" and "tokens" in entry["reason"]
    words = {"image": "000000.png", "expression": "the cat", "kind": "color", "answer": "red"}
    lines = [json.dumps({**words, "words": found}) for found in (["red", "blue"], ["red", "\u2603"])]
    (data / "attributes.jsonl").write_text("\n".join(lines))
    (data / "vqa.jsonl").unlink()
    assert evaluate(accuracy_bundle, data, "attreval", "words", "--images", images) == 0
    (entry,) = report("words")["left_out"]
    assert entry["item"] == "attributes.jsonl:2" and "no token" in entry["reason"]


def test_nothing_at_all_could_be_evaluated(
    accuracy_bundle: Path, accuracy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out", "--images", tmp_path) == 2
    error = capsys.readouterr().err.strip()
    assert "none of 6 entries" in error and "000000.png: there is no such file" in error and "\n" not in error


def test_what_an_engine_does_wrong_is_not_the_items_fault(
    accuracy_bundle: Path,
    accuracy_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def overflow(*_: object) -> None:
        raise LiraError("logits that are not finite")

    monkeypatch.setattr(Lira, "look", overflow)
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out") == 2
    assert "not finite" in capsys.readouterr().err
    assert report("out")["complete"] is False and not samples("out")


@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        ("caption", (), "there are: refseg, gcg, vqa, attreval, pope"),
        ("gcg", ("--workers", "4"), "expected ray"),
        ("gcg", ("--instruction", "Be short."), "short answers"),
        ("vqa", ("--split", "val"), "--split is for refseg and gcg"),
        ("gcg", ("--split", "val"), "has no splits"),
        ("gcg", ("--ilvc", "maybe"), "expected auto, on or off"),
        ("gcg", ("--images", "nowhere"), "no such folder"),
        ("gcg", ("--precision", "int8"), "lira-edge build"),
        ("gcg", ("--limit", "0"), "limit"),
    ],
)
def test_wrong_arguments(
    accuracy_bundle: Path,
    accuracy_data: Path,
    task: str,
    more: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate(accuracy_bundle, accuracy_data, task, "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_ilvc_off_is_another_evaluation(accuracy_bundle: Path, accuracy_data: Path, grounded: Path) -> None:
    assert evaluate(accuracy_bundle, accuracy_data, "gcg", "out", "--ilvc", "off", "--limit", 2) == 0
    assert report("out")["run"]["ilvc"] == "off"
    for sample in samples("out"):
        assert not sample["answers"][0]["regions"]
    assert all(sample["answers"][0]["regions"] for sample in samples(grounded))


def test_the_default_folder_and_one_look_for_an_image(
    accuracy_bundle: Path, accuracy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    look = Lira.look
    monkeypatch.setattr(Lira, "look", lambda self, image: seen.append(image) or look(self, image))
    arguments = [
        "eval",
        str(accuracy_bundle),
        "--data",
        str(accuracy_data),
        "--task",
        "pope",
        "--limit",
        "20",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    found = samples("eval-bundle-pope-cpu-fp32")
    assert len(found) == 20 and len(seen) == len({sample["image"] for sample in found}) < 20


def test_neither_file_tells_times_or_paths(grounded: Path, accuracy_data: Path) -> None:
    for name in ("report.json", "samples.jsonl"):
        text = (grounded / name).read_text(encoding="utf-8")
        assert str(accuracy_data) not in text and os.sep + "tmp" not in text
        assert "seconds" not in text and "timings" not in text
