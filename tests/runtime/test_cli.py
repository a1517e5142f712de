"""`lira-edge run` on stand-in engines: output, files, errors."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lira_engine.main import main
from lira_runtime import Lira, Question, rle
from lira_runtime.run import run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((20, 40, 3), 200, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def command(
    fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command with a scripted LLM; return exit code, stdout and stderr."""

    def invoke(*arguments: object, script: str = "") -> tuple[int, str, str]:
        answer_with(script, fakes, monkeypatch)
        with pytest.raises(SystemExit) as exit_:
            main(["run", "bundle", *map(str, arguments)])
        return int(exit_.value.code or 0), *capsys.readouterr()

    return invoke


def answer_with(script: str, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `Lira.open` open stand-in engines whose LLM answers with these tokens."""
    engines = fakes.fake_engines([fakes.ID[piece] for piece in script.split()])
    table = fakes.embed(range(len(fakes.VOCABULARY)))
    separators = -np.ones((2, fakes.WIDTH), dtype=np.float32)
    lira = Lira(fakes.fake_manifest(), engines, fakes.FakeTokenizer(), table, separators)
    monkeypatch.setattr(Lira, "open", lambda *_, **__: lira)


GROUNDED = "▁it ▁is [SEG] <image_id> ▁a ▁ball </p> ▁ [SEG] . <|im_end|>"


def test_run_prints_and_writes_text_masks_and_timings(command: Any, picture: Path, tmp_path: Path) -> None:
    overlay, report = tmp_path / "new" / "out.png", tmp_path / "out.json"
    arguments = ("--image", picture, "--task", "gcg", "--overlay", overlay, "--json", report)
    code, out, err = command(*arguments, "--attributes", "red,blue", script=GROUNDED)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "it is a ball."
    assert lines[1].startswith("■ a ball  (score 0.")
    assert lines[2].startswith("red")
    assert "11 tokens: decode" in out and "21.6 tok/s" in out
    assert Image.open(overlay).width >= 768
    written = json.loads(report.read_text(encoding="utf-8"))
    assert (written["bundle"], written["task"], written["question"]) == ("fake", "gcg", "the image?")
    assert (written["text"], written["finish_reason"]) == ("it is a ball.", "stop")
    assert written["phrases"] == [{"text": "a ball", "start": 6, "end": 12, "mask": 0}]
    assert rle.decode(written["masks"][0]["rle"]).shape == (20, 40)
    assert written["regions"][0]["box_xyxy"] == written["masks"][0]["box_xyxy"]
    assert [entry["word"] for entry in written["attributes"]] == ["red", "blue"]
    assert written["timings"]["new_tokens"] == 11


def test_run_from_python_prints_on_the_given_console_and_returns_the_answer(
    fakes: SimpleNamespace, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_with(GROUNDED, fakes, monkeypatch)
    console = Console(file=io.StringIO(), width=200)
    answer = run(Path("bundle"), picture, Question(task="gcg"), words=["red", "blue"], console=console)
    assert (answer.text, [phrase.text for phrase in answer.phrases]) == ("it is a ball.", ["a ball"])
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.startswith("it is a ball.\n\u25a0 a ball  (score 0.") and "\nred " in printed
    assert capsys.readouterr() == ("", "")


def test_words_without_a_mask_are_not_ranked(command: Any, picture: Path) -> None:
    code, out, _ = command(
        "--image", picture, "--ask", "Is it red?", "--attributes", "red,blue", script="▁it ▁is"
    )
    assert code == 0
    assert out.startswith("it is\nno mask in the answer")


def test_options_of_the_question_reach_the_answer(command: Any, picture: Path, tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    code, _, err = command(
        *("--image", picture, "--task", "gcg", "--ilvc", "plain", "--max-tiles", 1, "--json", report),
        script=GROUNDED,
    )
    assert (code, err) == (0, "")
    written = json.loads(report.read_text(encoding="utf-8"))
    assert (written["ilvc"], written["image"]["tiles"], written["regions"]) == ("plain", 1, [])
    assert "<image_id>" in written["raw_text"]


def test_cut_off_answer_says_so(command: Any, picture: Path) -> None:
    code, out, _ = command("--image", picture, "--ask", "it", "--max-new-tokens", 1, script="▁it ▁is")
    assert (code, out.splitlines()[0]) == (0, "it")
    assert "cut off" in out and "1 token: end to end" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--ask", " "], "the question is empty"),
        ([], "the question is empty"),
        (["--task", "poem"], "expected one of gcg, refseg, vqa"),
        (["--task", "refseg"], "needs an expression"),
        (["--ask", "it", "--ilvc", "maybe"], "expected one of auto, on, off, plain"),
        (["--ask", "it <image> <image>"], "<image> 2 times; expected it once"),
        (["--ask", "it", "--max-tiles", "13"], "max_tiles is 13"),
        (["--ask", "it", "--temperature", "-1"], "temperature"),
        (["--ask", "it", "--top-p", "2"], "top_p"),
        (["--ask", "it", "--max-new-tokens", "0"], "max_new_tokens"),
        (["--ask", "it", "--draft", "on"], "draft is 'on'; expected one of auto, off"),
        (["--ask", "it", "--driver", "cupy"], "driver is 'cupy'; expected auto, pycuda or cuda-bindings"),
        (["--ask", "it", "--attributes", " , "], "--attributes is empty"),
        (["--ask", "it", "--attributes", "ö"], "no token for"),
        (["--ask", "it", "--attributes", "red,red"], "begin with the same token"),
        (["--ask", "it", "--overlay", "out.jpg"], "ends in .png"),
        (["--ask", "it", "--overlay", "{image}"], "is also the image"),
        (["--ask", "it", "--json", "{folder}"], "is a folder"),
        (["--ask", "it", "--json", "{image}/out.json"], "no folder that you may write to"),
        (["--ask", "a " * 1100], "expected at most 1000"),
        (["--ask", "caf\udce9?"], "--ask is 'caf\\udce9?', which is not UTF-8"),
        (["--task", "refseg", "--expression", "\udce9"], "--expression is '\\udce9', which is not UTF-8"),
        (["--ask", "it", "--attributes", "red,\udce9"], "--attributes is 'red,\\udce9', which is not UTF-8"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command: Any, picture: Path, arguments: list[str], message: str
) -> None:
    filled = [a.replace("{image}", str(picture)).replace("{folder}", str(picture.parent)) for a in arguments]
    before = set(picture.parent.iterdir())
    code, out, err = command("--image", picture, *filled)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert set(picture.parent.iterdir()) == before


def test_a_file_that_is_no_image_is_refused(command: Any, tmp_path: Path) -> None:
    file = tmp_path / "empty.png"
    file.touch()
    code, _, err = command("--image", file, "--ask", "it")
    assert code == 2 and "is empty (0 bytes)" in err


def test_text_that_is_not_utf8_is_refused_before_engines_are_opened(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Lira, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(SystemExit) as caught:
        main(["run", "bundle", "--image", str(picture), "--ask", "caf\udce9"])
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_file_names_that_are_not_utf8_are_read_and_written(command: Any, picture: Path) -> None:
    odd = os.fsdecode(os.fsencode(picture.parent) + b"/caf\xe9")
    try:
        picture.rename(f"{odd}.png")
    except OSError:  # macOS
        pytest.skip("this file system has UTF-8 names only")
    out_options = ("--json", f"{odd}.json", "--overlay", f"{odd}-out.png")
    code, _, err = command("--image", f"{odd}.png", "--task", "gcg", *out_options, script=GROUNDED)
    assert (code, err) == (0, "")
    written = Path(f"{odd}.json").read_bytes()
    assert json.loads(written.decode())["image"]["file"] == f"{odd}.png"
    assert Image.open(f"{odd}-out.png").width >= 768


@pytest.mark.parametrize("name", ["a:car:b", "[red]b", "\\[b]"])
def test_names_are_printed_as_they_are(command: Any, picture: Path, name: str) -> None:
    report = picture.with_name(f"{name}.json")
    code, out, _ = command(
        "--image", picture, "--task", "refseg", "--expression", f"the {name}", "--json", report,
        script="[SEG] <image_id>",
    )  # fmt: skip
    assert code == 0 and report.exists()
    assert f"wrote {report}\n" in out and f"\u25a0 the {name}  (score" in out


def test_an_overlay_without_fonts_for_its_text_says_so(
    command: Any, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lira_runtime.fonts._file_with", lambda character: None)
    options = ("--task", "refseg", "--expression", "\u6a59\u8272 square", "--overlay", f"{picture}-out.png")
    code, out, err = command("--image", picture, *options, script="[SEG] <image_id>")
    assert (code, err) == (0, "") and '\nthe picture shows "?" for \u6a59\u8272: no font' in out
