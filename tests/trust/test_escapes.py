"""What a terminal would obey is shown by every command: names of bundles and files, options, answers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lira_engine.bundle.integrity import sha256_of
from lira_engine.commands import GROUP
from lira_engine.main import main

ROOT = Path(__file__).parent.parent.parent
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
EVIL = "evil\x1b]0;owned\x07\x9b31m\u202ehidden"
SEEN = r"evil\x1b]0;owned\x07\x9b31m\u202ehidden"
COMMANDS = sorted(entry.name for entry in metadata.entry_points(group=GROUP))
WITH_A_BUNDLE = ("bench", "build", "calibrate", "eval", "inspect", "plan", "run", "serve", "verify")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """printed(code, *arguments): all that `lira-edge ARGUMENTS` prints, without a character to obey."""

    def run(code: int, *arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert ended.value.code == code, told
        assert OBEYED.findall(told.out + told.err) == []
        return told.out + told.err

    return run


@pytest.fixture
def evil_bundle(trusted_nano: Path, tmp_path: Path) -> Path:
    """lira-nano with such a name, in a folder of such a name; its tokenizer writes such texts."""
    folder = shutil.copytree(trusted_nano, tmp_path / EVIL)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    planted = {"type": "Replace", "pattern": {"String": "star"}, "content": EVIL}
    tokenizer["decoder"]["decoders"].append(planted)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    manifest: dict[str, Any] = json.loads((folder / "lira.json").read_text())
    manifest["name"] = EVIL
    manifest["provenance"] = {EVIL: EVIL}
    size = (folder / "tokenizer.json").stat().st_size
    manifest["files"]["tokenizer.json"] = {"sha256": sha256_of(folder / "tokenizer.json"), "bytes": size}
    (folder / "lira.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refused_argument_is_shown(command: str, printed: Callable[..., str], tmp_path: Path) -> None:
    assert r"evil\x1b]0;owned" in printed(2, command, f"--{EVIL}")
    if command in WITH_A_BUNDLE:
        more = {
            "plan": ["--device", "thor"],
            "run": ["--image", ROOT / "assets" / "sample.png", "--ask", "x"],
            "eval": ["--task", "gcg", "--data", tmp_path / EVIL],
            "calibrate": ["--images", tmp_path, "-o", tmp_path / "recipe"],
        }
        assert SEEN in printed(2, command, tmp_path / EVIL, *more.get(command, []))


def test_a_refused_command_is_shown(printed: Callable[..., str]) -> None:
    assert r"evil\x1b]0;owned" in printed(2, EVIL)


def test_names_inside_a_bundle_are_shown(evil_bundle: Path, printed: Callable[..., str]) -> None:
    assert SEEN in printed(0, "inspect", evil_bundle)
    assert SEEN in printed(0, "plan", evil_bundle, "--device", "thor")
    printed(0, "verify", evil_bundle)
    assert SEEN in printed(0, "build", evil_bundle)


def test_an_answer_is_shown_and_kept_as_it_is(
    evil_bundle: Path, printed: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = shutil.copy(ROOT / "assets" / "sample.png", tmp_path / f"{EVIL}.png")
    kept = tmp_path / f"{EVIL}.json"
    told = printed(
        0, "run", evil_bundle, "--image", image, "--task", "gcg", "--threads", 1, "--json", kept,
        "--overlay", f"{EVIL}-out.png",
    )  # fmt: skip
    first, *lines = told.splitlines()
    assert SEEN in first and f"wrote {kept.parent}/{SEEN}.json" in lines and f"wrote {SEEN}-out.png" in lines
    assert any(line.startswith("\u25a0 ") and r"evil\x1b]0;owned" in line for line in lines)
    answer = json.loads(kept.read_text(encoding="utf-8"))
    assert EVIL in answer["text"] and answer["bundle"] == EVIL


def test_annotations_are_shown(evil_bundle: Path, printed: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "pope.jsonl").write_text(json.dumps({"image": EVIL, "text": EVIL, "label": EVIL}) + "\n")
    told = printed(2, "eval", evil_bundle, "--task", "pope", "--data", tmp_path, "-o", tmp_path / "out")
    assert "error: " in told
