"""A new target is one folder and a row in the table of targets: every command takes it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lira_engine import cli, targets
from lira_engine.engines.record import read_build
from lira_engine.main import main

HERE = Path(__file__).parent
SAMPLE = HERE.parents[2] / "assets" / "sample.png"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The toy's module; its target is in the table."""
    spec = importlib.util.spec_from_file_location("toy", HERE / "toy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy", module)
    spec.loader.exec_module(module)
    with monkeypatch.context() as patched:
        patched.setitem(targets.TARGETS, "toy", module.ToyTarget())
        importlib.reload(cli)  # the options of `build` are those of the table
        yield module
    importlib.reload(cli)


@pytest.fixture
def bundle(nano_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(nano_bundle, tmp_path / "nano")


def test_every_command_takes_it(
    toy: Any, bundle: Path, tmp_path: Path, printed_by: Callable[..., str]
) -> None:
    engines = bundle / "engines" / "toy-fp32"
    of_toy = (str(bundle), "--target", "toy")
    assert re.search(r"toy +yes +NumPy is always there", printed_by("doctor"))
    assert f"would write {engines}" in printed_by("build", *of_toy, "--dry-run") and not engines.exists()
    printed = printed_by("build", *of_toy, "--digits", "6", "--threads", "1")
    assert re.search(r"pixel_decoder +fp32 .*e-0\d", printed)
    record = json.loads((engines / "build.json").read_text())
    assert record["options"] == {"digits": 6} and "pixel_decoder.toy" in record["files"]

    printed = printed_by("verify", *of_toy, "--threads", "1")
    assert re.search(r"argmax|next tokens are the fp32 model's", printed)
    verified = read_build(engines, "").verified
    assert verified is not None and verified.setting.runtime.startswith("numpy ")
    assert re.search(r"toy-fp32 +ready", printed_by("inspect", str(bundle)))

    printed_by("build", str(bundle), "--threads", "1")
    answers = []
    toy.ToyStage.passes = 0
    for target in ("cpu", "toy"):
        file = tmp_path / f"{target}.json"
        asked = ("--image", str(SAMPLE), "--task", "refseg", "--expression", "the orange star")
        printed_by("run", str(bundle), "--target", target, *asked, "--json", str(file), "--threads", "1")
        answers.append(json.loads(file.read_text()))
    cpu, own = answers
    assert own["target"] == "toy" and own["text"] == cpu["text"] and toy.ToyStage.passes > 0
    assert own["phrases"] == cpu["phrases"] != []
    for mask, expected in zip(own["masks"], cpu["masks"], strict=True):
        assert mask["rle"] == expected["rle"] and mask["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_wrong_engines_are_noticed_on_the_device(
    toy: Any, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of one digit, which this toy's build does not check."""
    with pytest.raises(SystemExit, match="0"):
        main(["build", str(bundle), "--target", "toy", "--digits", "1", "--threads", "1"])
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(bundle), "--target", "toy", "--threads", "1"])
    assert "the toy engine of pixel_decoder is wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("--digits", "3"), "digits 3: expected 1 or 6"),
        (("--precision", "int4"), "target toy has no precision 'int4'; expected fp32"),
        (("--encoders", "int8"), "target toy has no option encoders: leave it out"),
    ],
)
def test_what_it_does_not_take_is_refused(
    toy: Any, bundle: Path, arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["build", str(bundle), "--target", "toy", *arguments])
    assert reason in capsys.readouterr().err
