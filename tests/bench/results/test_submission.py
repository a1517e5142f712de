"""What `--submit` writes tells nothing of whose machine it was."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from lira_bench.results import all_engines, submission
from lira_bench.results.all_engines import bench_all
from lira_bench.results.result import Pictures, Results
from lira_bench.results.submitted import read_submitted
from lira_bench.speed.request import Request
from lira_engine import LiraError
from lira_engine.engines.record import read_build
from lira_engine.system.machine import Gpu, this_machine

SECRET = "planted-secret"
ROOT = Path(__file__).parents[3]


def test_nothing_of_the_user_is_in_the_file(
    accuracy_bundle: Path, tmp_path: Path, measuring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Host, user, folders, file names, variables, other programs, the kernel's suffix, the bundle's own name,
    reasons: whatever has the secret in it stays here."""
    home = tmp_path / SECRET
    bundle = home / f"{SECRET}-bundle"
    shutil.copytree(accuracy_bundle, bundle)
    manifest = json.loads((bundle / "lira.json").read_text())
    manifest["name"] = f"{SECRET}-weights"
    manifest["provenance"]["checkpoint"] = f"/home/{SECRET}/weights"
    (bundle / "lira.json").write_text(json.dumps(manifest))
    foreign = bundle / "engines" / "cuda-fp16"
    foreign.mkdir()
    (foreign / "build.json").write_text("{}")
    shutil.copytree(foreign, bundle / "engines" / f"cpu-int4.{SECRET}")
    shutil.copy(ROOT / "assets" / "answer.png", home / f"{SECRET}.png")
    monkeypatch.chdir(home)
    for name in ("HOSTNAME", "USER", "LOGNAME", "USERNAME", "HOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, f"/home/{SECRET}")
    for module, name in ((socket, "gethostname"), (socket, "getfqdn"), (platform, "node")):
        monkeypatch.setattr(module, name, lambda *_: SECRET)
    machine = dataclasses.replace(this_machine(), system=f"Linux 6.1.0-{SECRET} x86_64")
    monkeypatch.setattr(all_engines, "this_machine", lambda: machine)
    measuring.without = {"cpu-int4"}
    measuring.reasons = {"cpu-int4": f"/home/{SECRET}/x cannot be read"}
    request = Request(
        Path(f"{SECRET}-bundle"), expression=SECRET, images=Path(f"{SECRET}.png"), all=True,
        submit=Path(f"{SECRET}.json"),
    )  # fmt: skip
    measured = bench_all(request)
    told = submission.write(home / "file.json", measured.results)
    text = (home / "file.json").read_text()
    assert SECRET not in text and "planted" not in text and str(tmp_path) not in text
    assert os.sep not in text.replace("\\n", "") and "@" not in text
    # What is left is all of it.
    assert read_submitted(home / "file.json") == told
    assert (told.bundle.name, told.asked.pictures.name) == ("own bundle", "own image")
    assert told.machine.system == "Linux 6.1.0 x86_64" and told.machine.cpu
    assert [(one.name, one.status, one.reason) for one in told.engines] == [
        ("cpu-fp32", "measured", ""), ("cpu-int4", "failed", ""), ("cuda-fp16", "refused", ""),
    ]  # fmt: skip
    # The user's own files keep it.
    assert SECRET in (measured.folder / "results.json").read_text()


def test_a_file_has_these_keys_and_no_others(results: Results, tmp_path: Path) -> None:
    """Whoever adds one must say so in docs/results/README.md."""
    submission.write(tmp_path / "file.json", results)
    data = json.loads((tmp_path / "file.json").read_text())
    assert set(data) == {"format", "format_version", "date", "machine", "bundle", "asked", "engines", "drift"}
    assert set(data["machine"]) == {
        "system", "cpu", "cores", "threads", "memory_gib", "instruction_sets", "gpus", "jetson", "power_mode",
        "versions",
    }  # fmt: skip
    assert set(data["machine"]["gpus"][0]) == {"name", "memory", "driver", "compute_capability"}
    assert set(data["bundle"]) == {"name", "manifest_sha256", "synthetic", "is_authors_model"}
    assert set(data["asked"]) == {"task", "forced", "max_tiles", "runs", "warmup", "pictures"}
    assert set(data["asked"]["pictures"]) == {"count", "name", "width", "height"}
    engine = data["engines"][0]
    assert set(engine) == {"name", "status", "reason", "bytes", "tools", "error", "figures"}
    assert set(engine["error"]) == {"value", "stage", "output", "by"}
    assert set(engine["figures"]) == {
        "ttft_s", "total_s", "decode_tokens_per_s", "end_to_end_tokens_per_s", "new_tokens", "peak_rss_mib",
        "quiet", "others", "card",
    }  # fmt: skip
    assert set(engine["figures"]["card"]) == {
        "name", "peak_memory_mib", "clock_mhz", "memory_clock_mhz", "power_w", "temperature_c", "throttled",
        "energy_j_per_answer", "energy_of", "source",
    }  # fmt: skip


def test_texts_lose_what_markdown_reads(results: Results, tmp_path: Path) -> None:
    odd = dataclasses.replace(
        results.machine,
        cpu="Intel(R) Core(TM) i7 CPU @ 2.60GHz",
        gpus=(Gpu("<b>x</b>|`[a](//www.b.c)`\n\x1b[31m\u202e", "[N/A]", "/dev", None),),
        power_mode="__init__ _x_ a_b -",
        jetson=("- 1. board",),
        versions={"a/b": "1.0+x"},
    )
    told = submission.write(tmp_path / "file.json", dataclasses.replace(results, machine=odd)).machine
    assert told.cpu == "Intel(R) Core(TM) i7 CPU 2.60GHz"
    assert told.gpus == (Gpu("b x b a ( www b.c) 31m", "N A", "dev", None),)
    assert (told.power_mode, told.jetson, told.versions) == ("init x a_b -", ("1. board",), {"a b": "1.0+x"})


@pytest.mark.parametrize("name", ["lira-2b", "lira-nano"])
def test_published_names_are_told(results: Results, name: str) -> None:
    named = dataclasses.replace(results, bundle=dataclasses.replace(results.bundle, name=name))
    assert submission.for_others(named).bundle.name == name


def test_a_file_that_would_be_refused_is_not_written(results: Results, tmp_path: Path) -> None:
    asked = dataclasses.replace(results.asked, pictures=Pictures(1, "a/b.png", 4, 3))
    with pytest.raises(LiraError, match="has the sign '/'"):
        submission.write(tmp_path / "file.json", dataclasses.replace(results, asked=asked))
    nothing = dataclasses.replace(results, engines=results.engines[2:])
    with pytest.raises(LiraError, match=r"file.json was not written: no engine was measured"):
        submission.write(tmp_path / "file.json", nothing)
    assert not list(tmp_path.iterdir())


def test_errors_come_from_verify_where_it_ran(accuracy_bundle: Path) -> None:
    from lira_bench.results.result import worst_error
    from lira_engine.engines.record import Verified
    from lira_engine.engines.setting import Setting

    build = read_build(accuracy_bundle / "engines" / "cpu-int4", "")
    found = worst_error(build)
    assert found is not None and (found.by, found.stage) == ("build", "llm")
    assert found.value == max(value for outputs in build.errors.values() for value in outputs.values())
    errors = {"llm": {"logits": 0.01}, "sefe": {"pixel_tokens": 0.5, "query_tokens": 0.2}}
    verified = Verified("now", Setting("a", "", "b"), errors, 4, 4)
    again = worst_error(dataclasses.replace(build, verified=verified))
    assert again is not None
    assert (again.by, again.stage, again.output, again.value) == ("verify", "sefe", "pixel_tokens", 0.5)
    assert worst_error(dataclasses.replace(build, errors={})) is None
