"""A whole comparison, with fake workers that speak the protocol."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from lira_bench.peers import PEERS, compare
from lira_bench.peers import interleave as turns
from lira_bench.peers.process import WorkerError
from lira_bench.peers.schedule import prompt_rows
from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError

# Everything that it is asked goes to LOG. Ours takes 1 s a turn, a peer 3 s; both say so, none waits.
FAKE = """#!{python} -S
import json, os, sys
name, ours = sys.argv[3], sys.argv[3] == "lira-edge"
slow = 1.0 if ours else 3.0
stages = dict(prefill=slow, decode=slow)
answers = dict(
    about=dict(missing=[] if ours else {missing}, version="1.2"),
    convert={{}}, prepare=dict(ran="" if ours else "int4"),
    turn=dict(prefill_s=slow, decode_s=slow, tokens=[]),
    answer=dict(seconds=slow, decode_ms=slow, prefill_tokens=9, new_tokens=5, stages=stages, mask_pixels=[]),
    check=dict(errors=dict(semantic_encoder=slow / 100)), encode=dict(stages=dict(semantic_encoder=slow)),
    close=dict(peak_rss_mib=100),
)
if not ours and {dies!r} == "at start":
    sys.exit("no such library")
for line in sys.stdin:
    command = json.loads(line)
    with open({log!r}, "a") as log:
        log.write(json.dumps([name, command]) + "\\n")
    if {dies!r} == name + " " + command["do"]:
        sys.exit(5)
    if command["do"] == "convert":
        open(os.path.join(command["out"], "model.bin"), "w").close()
    print(json.dumps(answers[command["do"]] | dict(cpu=[0, 0])), flush=True)
"""


class Fakes:
    def __init__(self, folder: Path) -> None:
        self.python, self.log = folder / "python", folder / "asked.jsonl"
        self.write()

    def write(self, missing: tuple[str, ...] = (), dies: str = "") -> None:
        text = FAKE.format(python=sys.executable, log=str(self.log), missing=list(missing), dies=dies)
        self.python.write_text(text)
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)
        self.log.write_text("")

    @property
    def pythons(self) -> dict[str, str]:
        return dict.fromkeys(("lira-edge", *PEERS), str(self.python))

    def asked(self, *verbs: str) -> list[tuple[str, dict[str, Any]]]:
        """Return (worker, command) in order of time."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [(name, command) for name, command in lines if command["do"] in verbs]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    monkeypatch.setattr(turns, "SETTLE", 0)
    return Fakes(tmp_path)


def run(bundle: Path, work: Path, fakes: Fakes, *names: str, **options: Any) -> Any:
    given: dict[str, Any] = {"threads": 3, "steps": 4, "prompt_tokens": 8, "rounds": 2, "progress": [].append}
    return compare(bundle, "portable", "fp32", names, work, pythons=fakes.pythons, **(given | options))


def test_turns_alternate_and_give_the_ratios(language_bundle: Path, tmp_path: Path, fakes: Fakes) -> None:
    (result,) = run(language_bundle, tmp_path / "work", fakes, "genai")
    assert result.status == "measured" and result.ran == "onnxruntime-genai 1.2, int4"
    assert (result.ours_ms_per_token, result.peer_ms_per_token) == (250.0, 750.0)
    assert result.ratio_median == result.prefill_ratio_median == 3.0
    assert result.ours_peak_rss_mib == result.peer_peak_rss_mib == 100
    assert (result.threads, result.rounds, result.steps, result.prompt_tokens) == (3, 2, 4, 8)
    asked = fakes.asked("turn")
    assert [name for name, _ in asked] == ["lira-edge", "genai"] * 2
    assert all(command == {"do": "turn", "tokens": 8, "steps": 4} for _, command in asked)
    assert {command["threads"] for _, command in fakes.asked("prepare")} == {3}


def test_a_model_is_converted_once(language_bundle: Path, tmp_path: Path, fakes: Fakes) -> None:
    work = tmp_path / "work"
    run(language_bundle, work, fakes, "genai")
    run(language_bundle, work, fakes, "genai", "llama-cpp")
    # Ours writes the Hugging Face folder, for all of them.
    assert [name for name, _ in fakes.asked("convert")] == ["lira-edge", "genai", "llama-cpp"]
    folders = {path.name.rpartition("-")[0] for path in work.iterdir() if (path / "model.bin").exists()}
    assert folders == {"hugging-face", "genai", "llama-cpp"}


def test_whole_answers_give_ratios_and_stages(language_bundle: Path, tmp_path: Path, fakes: Fakes) -> None:
    (result,) = run(language_bundle, tmp_path / "work", fakes, "torch", checkpoint=tmp_path, rounds=9)
    assert result.status == "measured" and result.rounds == 3
    assert (result.ours_answer_s, result.peer_answer_s, result.answer_ratio_median) == (1.0, 3.0, 3.0)
    assert result.peer_stages == {"prefill": 3.0, "decode": 3.0}
    assert [name for name, _ in fakes.asked("answer")] == ["lira-edge", "torch"] * 3
    ours, theirs = (command for _, command in fakes.asked("prepare"))
    assert theirs["checkpoint"] == str(tmp_path)
    assert ours["image"] == theirs["image"] and Path(ours["image"]).is_file()


def test_encoders_give_ratios_and_errors(language_bundle: Path, tmp_path: Path, fakes: Fakes) -> None:
    (result,) = run(language_bundle, tmp_path / "work", fakes, "openvino-int8")
    assert result.status == "measured" and result.ran == "openvino-genai 1.2, int4"
    assert result.stage_ratios == {"semantic_encoder": [3.0, 3.0, 3.0]}
    assert (result.ours_stages, result.peer_stages) == ({"semantic_encoder": 1.0}, {"semantic_encoder": 3.0})
    assert (result.ours_errors, result.peer_errors) == (
        {"semantic_encoder": 0.01},
        {"semantic_encoder": 0.03},
    )
    assert [name for name, _ in fakes.asked("encode")] == ["lira-edge", "openvino-int8"] * 2
    # From the bundle, without a folder of the language model.
    ((name, command),) = fakes.asked("convert")
    assert name == "openvino-int8" and command["source"] == str(language_bundle)
    ours, theirs = (command for _, command in fakes.asked("prepare"))
    assert ours["measures"] == "encoders" and theirs["folder"].rpartition("-")[0].endswith("openvino-int8")


def test_a_turn_reads_a_real_prompt(language_bundle: Path, tmp_path: Path, fakes: Fakes) -> None:
    (result,) = run(language_bundle, tmp_path / "work", fakes, "genai", prompt_tokens=None)
    # Seven tiles of four tokens, four cells, four queries, two separators, and the question.
    assert result.prompt_tokens == prompt_rows(Bundle.open(language_bundle)) > 7 * 4 + 4 + 4 + 2
    (result,) = run(language_bundle, tmp_path / "work", fakes, "genai", prompt_tokens=None, steps=100)
    assert result.prompt_tokens == 128 - 100 - 2  # what the context leaves


def test_a_peer_without_its_packages_is_skipped(language_bundle: Path, tmp_path: Path, fakes: Fakes) -> None:
    fakes.write(missing=("onnxruntime-genai",))
    (result,) = run(language_bundle, tmp_path / "work", fakes, "genai")
    assert result.status == "skipped"
    assert result.reason == "onnxruntime-genai not installed: pip install 'lira-edge[peer-genai]'"
    assert not fakes.asked("convert", "prepare", "turn")


def test_torch_is_skipped_without_a_checkpoint(language_bundle: Path, tmp_path: Path, fakes: Fakes) -> None:
    (result,) = run(language_bundle, tmp_path / "work", fakes, "torch")
    assert result.status == "skipped" and "--checkpoint FOLDER" in result.reason


@pytest.mark.parametrize(
    ("dies", "told"),
    [
        ("at start", "ended with code 1 while asked to about"),
        ("genai convert", "ended with code 5 while asked to convert"),
        ("lira-edge convert", "ended with code 5 while asked to convert"),
        ("genai turn", "ended with code 5 while asked to turn"),
    ],
)
def test_a_peer_that_dies_does_not_stop_the_others(
    language_bundle: Path, tmp_path: Path, fakes: Fakes, dies: str, told: str
) -> None:
    fakes.write(dies=dies)
    failed, skipped = run(language_bundle, tmp_path / "work", fakes, "genai", "torch")
    assert failed.status == "failed" and told in failed.reason
    assert skipped.name == "torch" and skipped.status == ("failed" if dies == "at start" else "skipped")
    assert not list((tmp_path / "work").glob("genai-*")) or dies == "genai turn"


def test_a_failure_of_our_engines_is_an_error(language_bundle: Path, tmp_path: Path, fakes: Fakes) -> None:
    fakes.write(dies="lira-edge turn")
    with pytest.raises(WorkerError, match="ended with code 5 while asked to turn"):
        run(language_bundle, tmp_path / "work", fakes, "genai")


def test_the_environment_names_an_interpreter(
    language_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIRA_PEER_PYTHON_GENAI", str(tmp_path / "none"))
    given: dict[str, Any] = {"threads": 1, "prompt_tokens": 8, "progress": [].append}
    (result,) = compare(language_bundle, "portable", "fp32", ["genai"], tmp_path / "work", **given)
    assert result.status == "failed" and f"{tmp_path}/none cannot be started" in result.reason


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 0}, "expected 1 or more"),
        ({"prompt_tokens": 300}, "300 prompt tokens and 6 more do not fit into the context of 128"),
    ],
)
def test_numbers_out_of_range_are_refused(
    language_bundle: Path, tmp_path: Path, fakes: Fakes, options: dict[str, int], told: str
) -> None:
    with pytest.raises(LiraError, match=told):
        run(language_bundle, tmp_path / "work", fakes, "genai", **options)


def test_targets_other_than_the_cpu_are_refused(language_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(LiraError, match="found target 'tensorrt', expected cpu or portable"):
        compare(language_bundle, "tensorrt", "int4", ["genai"], tmp_path, threads=1, progress=[].append)
