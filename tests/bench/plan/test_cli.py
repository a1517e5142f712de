"""`lira-edge plan`, through its command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lira_bench.plan import devices, efficiency, measured, published
from lira_bench.plan.cli import plan
from lira_bench.plan.device import Device
from lira_bench.plan.measured import AVX2
from lira_engine.errors import LiraError
from lira_engine.main import main

DOCS = Path(__file__).parents[3] / "docs" / "plan.md"
QUIET = AVX2  # the machine of docs/true-size.md


def test_plan_runs_without_the_bench_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lira_engine.system.extras.installed", lambda package: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setenv("COLUMNS", "200")
    for arguments, code in ((["plan", "lira-2b", "--device", "orin-nx-16"], 0), (["bench", "bundle"], 2)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
    told = capsys.readouterr()
    assert "lira-2b, int4, on Jetson Orin NX 16GB" in told.out
    assert told.err == "error: `lira-edge bench` needs matplotlib: run pip install 'lira-edge[bench]'\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "lira-edge[bench]" in listed["bench"] and "lira-edge[export]" in listed["export"]
    assert not [name for name in ("plan", "eval", "run", "build") if "not installed" in listed[name]]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of this machine by fixed figures."""
    find = devices.find
    monkeypatch.setattr(devices, "find", lambda name: QUIET if name == "this-machine" else find(name))


def record(**changes: Any) -> dict[str, Any]:
    """Return the record of LIRA-2B's int4 engines on two cores, from docs/true-size.md."""
    return {
        "format": "lira-bench",
        "format_version": 1,
        "bundle": "lira-2b",
        "precision": "int4",
        "task": "refseg",
        "stages": {
            "semantic_encoder": {"median": 18.87, "count": 7},
            "pixel_encoder": {"median": 14.52},
            "sefe": {"median": 0.26},
            "prefill": {"median": 38.38, "tokens": 2098},
            "decode": {"median": 0.0634},
            "pixel_decoder": {"median": 0.034},
            "region_encode": {"median": 2.72},
            "region_prefill": {"median": 5.45, "tokens": 260},
        },
        "ttft_s": {"median": 72.1},
        "tokens_per_s": {"decode": 15.77, "end_to_end": 0.0828},
        "new_tokens": 6,
        "masks": 1,
        "regions": 0,
        **changes,
    }


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(record()))
    return path


def test_json_has_the_plan_of_one_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "plan.json"
    plan("lira-2b", device="orin-nano-super", precision="int4", json=written)
    text = capsys.readouterr().out
    assert "Jetson Orin Nano Super 8GB" in text
    assert "fits, " in text and "the largest part is the weights of llm" in text
    assert "guess: " in text and "published: TensorRT Edge-LLM" in text and "21.6" in text
    assert "energy: ESTIMATED, at most: 25 W" in text
    found = json.loads(written.read_text())
    assert found["memory"]["fits"] and found["authors_tokens_per_second"] == 21.6
    seconds, answers = found["seconds"], found["answers"]
    parts = seconds["preprocess"] + 7 * seconds["semantic_encoder"]
    parts += seconds["pixel_encoder"] + seconds["sefe"] + seconds["prefill"]
    assert seconds["ttft"] == pytest.approx(parts)
    assert seconds["ttft_range"][0] < seconds["ttft"] < seconds["ttft_range"][1]
    assert answers["gcg"]["joules_at_most"] == pytest.approx(25 * answers["gcg"]["total"])
    assert "convolution" in found["guesses"] and "int4 prefill" not in found["guesses"]
    assert answers["refseg"]["total"] > seconds["ttft"]


def test_a_dash_prints_the_figures_as_the_last_line(
    quiet: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan("lira-2b", device="thor", json=Path("-"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["device"]["name"] == "thor"
    plan("lira-2b", all_devices=True, json=Path("-"), markdown=tmp_path / "plan.md")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["device"]["name"] for one in found] == devices.names()


def test_a_plan_says_that_a_model_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    plan("lira-2b", device="orin-nano", precision="fp32")
    text = capsys.readouterr().out
    assert "does not fit: " in text and "GiB too little; the largest part is the weights of llm" in text


def test_the_table_has_every_device_or_says_why_not(
    quiet: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "plan.md"
    plan("lira-2b", all_devices=True, precision="int4", markdown=table)
    lines = [line for line in table.read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == ["name", "---", *devices.names()]
    assert len({line.count(" | ") for line in lines}) == 1
    plan("lira-2b", all_devices=True, precision="fp16", markdown=table)
    assert "| this-machine" not in table.read_text()
    assert "this-machine is left out: precision 'fp16' is not one that" in table.read_text()


def test_a_machine_that_cannot_be_measured_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def find(name: str) -> Device:
        if name == "this-machine":
            raise LiraError("ONNX Runtime is not installed")
        return devices.DEVICES[name]

    monkeypatch.setattr(devices, "find", find)
    table = tmp_path / "plan.md"
    plan("lira-2b", all_devices=True, markdown=table)
    assert "this-machine is left out: ONNX Runtime is not installed." in table.read_text()
    assert "| rtx-5090 |" in table.read_text() and "| this-machine |" not in table.read_text()


def test_a_plan_says_that_this_machine_is_busy(
    quiet: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lira_bench.plan.report.usable_cores", lambda: 2)
    for load, busy in ((2.5, True), (1.5, False)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        plan("lira-2b", device="this-machine")
        assert ("NOTE: this machine is busy (load 2.5 on 2 cores)" in capsys.readouterr().out) == busy


def test_against_compares_the_plan_with_a_measurement(
    quiet: None, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "plan.json"
    plan("lira-2b", device="this-machine", precision="int4", prefill="same", against=bench, json=written)
    rows = {row["name"]: row for row in json.loads(written.read_text())["against"]["rows"]}
    assert list(rows) == [
        *("semantic_encoder", "pixel_encoder", "sefe", "prefill", "decode", "pixel_decoder"),
        *("region_encode", "region_prefill", "ttft", "tokens_per_s.decode", "tokens_per_s.end_to_end"),
    ]
    for row in rows.values():
        assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
    # What the shares were fitted to; a mask is many small matmuls, whose fixed cost a roofline lacks.
    for name in ("semantic_encoder", "pixel_encoder", "sefe", "prefill", "decode", "ttft", "region_prefill"):
        assert abs(rows[name]["error"]) < 0.2, name
    assert rows["pixel_decoder"]["error"] < -0.4
    assert "lacks" not in capsys.readouterr().out


def test_predicted_times_fit_the_shares_in_use(quiet: None, bench: Path, tmp_path: Path) -> None:
    written = tmp_path / "plan.json"
    plan("lira-2b", device="this-machine", precision="int4", prefill="same", against=bench, json=written)
    first = json.loads(written.read_text())
    stages = record()["stages"]
    for row in first["against"]["rows"]:
        if row["name"] in stages:
            stages[row["name"]]["median"] = row["predicted"]
    bench.write_text(json.dumps(record(stages=stages)))
    plan("lira-2b", device="this-machine", precision="int4", prefill="same", against=bench, json=written)
    fitting = json.loads(written.read_text())["against"]["fitting"]
    used = first["efficiency"]
    expected = {work: used["compute"][work]["value"] for work in ("int8 vit", "float pixel", "int4 prefill")}
    assert fitting == pytest.approx(expected | {"decode bytes": used["bandwidth"]["value"]})


def test_keys_that_a_record_lacks_are_named(
    quiet: None, bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = record()["stages"]
    del stages["sefe"], stages["prefill"]["tokens"]
    bench.write_text(json.dumps(record(stages=stages, regions="three")))
    plan("lira-2b", device="this-machine", precision="int4", prefill="same", against=bench)
    text = " ".join(capsys.readouterr().out.split())
    assert f"{bench} lacks".replace(" ", "") in text.replace(" ", "")
    for key in ("stages.sefe.median", "stages.prefill.tokens", "regions"):
        assert key in text.partition("lacks")[2]
    assert "tokens_per_s" not in text.partition("lacks")[0], "answers are not known without their regions"


@pytest.mark.parametrize("precision", ["int4", "fp16", "mixed"])
def test_the_docs_page_has_the_current_tables(quiet: None, tmp_path: Path, precision: str) -> None:
    """docs/plan.md has the output of the command, without this machine."""
    page = DOCS.read_text(encoding="utf-8")
    written = tmp_path / "plan.md"
    plan("lira-2b", all_devices=True, precision=precision, markdown=written)
    rows = [line for line in written.read_text().splitlines() if line.startswith("| ")]
    assert "\n".join(row for row in rows if not row.startswith("| this-machine")) in page


@pytest.mark.parametrize("table", [devices.table, efficiency.table, published.table, measured.table])
def test_the_docs_page_has_the_tables_of_the_modules(table: Callable[[], str]) -> None:
    """Figures of devices, shares, and both comparisons with their errors, computed again."""
    assert table() in DOCS.read_text(encoding="utf-8")


def test_a_cpu_plan_says_what_is_mapped(
    quiet: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "plan.json"
    plan("lira-2b", device="this-machine", json=written)
    text, found = capsys.readouterr().out, json.loads(written.read_text())["memory"]
    assert "on disk: " in text and "int4, blocks of 32; w8a8 from 80 rows on" in text
    assert found["mapped"] > 2**30 and found["kv_capacity"] == 768 * 2**20
    plan("lira-2b", device="this-machine", prefill="same", json=written)
    alone = json.loads(written.read_text())["memory"]
    assert alone["mapped"] == 0 and alone["total"] == found["total"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, 'lacks "format": "lira-bench"'),
        ({"format_version": 2}, "format version 2, expected 1"),
        ({"bundle": "lira-8b"}, "measured bundle 'lira-8b', this plan is for 'lira-2b'"),
        ({"precision": "int8"}, "measured precision 'int8', this plan is for 'int4'"),
    ],
)
def test_other_records_are_refused(quiet: None, bench: Path, changes: dict[str, Any], message: str) -> None:
    bench.write_text(json.dumps(record(**changes)))
    with pytest.raises(LiraError, match=message):
        plan("lira-2b", device="this-machine", precision="int4", prefill="same", against=bench)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected either --device or --all-devices; devices: orin-nano, .*this-machine"),
        ({"device": "thor", "all_devices": True}, "expected either --device or --all-devices"),
        ({"device": "tx2"}, "device 'tx2' is not known; expected one of orin-nano"),
        ({"device": "thor", "precision": "fp8"}, "'fp8' is not one that thor has; expected fp16, int4"),
        ({"device": "this-machine", "precision": "fp16"}, "'fp16' is not one that this-machine has"),
        ({"all_devices": True, "precision": "fp8"}, "precision 'fp8' is not known; expected fp32"),
        ({"device": "thor", "precision": "int8"}, "'int8' is not one that thor has"),
        ({"device": "thor", "recipe": Path("r")}, "--recipe names the weights of one bundle; .* 'lira-2b'"),
        ({"device": "thor", "recipe": Path("r"), "precision": "int4"}, "--recipe sets the precision"),
        ({"device": "thor", "recipe": Path("r"), "block_size": 32}, "--recipe sets the precision"),
        ({"device": "thor", "prefill": "int4"}, "prefill 'int4'; expected int8 or same"),
        ({"device": "thor", "tiles": 0}, "0 tiles; expected 1 to 7"),
        ({"device": "thor", "block_size": 16}, "block size 16; expected 32 or 128"),
        ({"device": "thor", "json": Path(".")}, "--json . is a folder"),
        ({"device": "thor", "markdown": Path("x.md")}, "--markdown takes the table over all devices"),
        ({"all_devices": True, "against": Path("x.json")}, "--against compares one device"),
        ({"device": "thor", "against": Path("absent.json")}, "absent.json cannot be read"),
    ],
)
def test_wrong_options_are_refused(quiet: None, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LiraError, match=message):
        plan("lira-2b", **arguments)


def test_the_command_line_ends_with_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lira_engine.main import main

    monkeypatch.setattr("sys.argv", ["lira-edge", "plan", "lira-3b", "--device", "thor"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 'lira-3b' is no size and no folder") and error.count("\n") == 1
