"""The plan of a build, and the command that reproduces one."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lira_engine import LiraError
from lira_engine.build import build, plan_build
from lira_engine.engines.record import read_build
from lira_engine.ort.options import CpuOptions


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(
    bundle_path: Path, printed_by: Callable[..., str]
) -> None:
    folder = bundle_path / "engines" / "cpu-int8"
    arguments = ("build", str(bundle_path), "--precision", "int8", "--encoders", "fp32")
    plan = plan_build(bundle_path, "cpu", "int8", CpuOptions(encoders="fp32"))
    assert plan.folder == folder and not plan.up_to_date and plan.last_seconds is None
    assert plan.precisions["llm"] == ("int8",) and plan.precisions["sefe"] == ("fp32", "int8")
    printed = printed_by(*arguments, "--dry-run")
    assert f"would write {folder}" in printed and re.search(r"state +to be built", printed)
    assert re.search(r"memory +512 MiB, [\d,]+ MiB are available", printed)
    assert re.search(r"last time +never built here", printed) and not folder.parent.exists()

    printed_by(*arguments)
    plan = plan_build(bundle_path, "cpu", "int8", CpuOptions(encoders="fp32"))
    assert (
        plan.up_to_date
        and plan.last_seconds is not None
        and plan.disk_bytes >= sum(plan.engine_bytes.values())
    )
    assert not plan_build(bundle_path, "cpu", "int8", CpuOptions(encoders="fp32"), force=True).up_to_date
    assert not plan_build(bundle_path, "cpu", "int8", CpuOptions(encoders="int8")).up_to_date


def test_a_dry_run_fails_as_the_build_would(bundle_path: Path) -> None:
    (bundle_path / "engines" / "cpu-fp32").mkdir(parents=True)
    (bundle_path / "engines" / "cpu-fp32" / "photo.jpg").write_text("")
    with pytest.raises(LiraError, match=r"holds photo\.jpg, which no build wrote"):
        plan_build(bundle_path)


def test_a_build_ends_with_the_command_that_reproduces_it(
    bundle_path: Path, printed_by: Callable[..., str]
) -> None:
    given = ("--precision", "int4", "--block-size", "128", "--encoders", "fp32", "--threads", "1")
    *_, last = printed_by("build", str(bundle_path), *given).splitlines()
    words = shlex.split(last)
    assert words[:4] == ["reproduce:", "lira-edge", "build", str(bundle_path)]
    folder = bundle_path / "engines" / "cpu-int4"
    options = read_build(folder, "").options
    shutil.rmtree(folder)
    printed_by(*words[2:])
    assert read_build(folder, "").options == options == {
        "block_size": 128, "lm_head_bits": 4, "encoders": "fp32", "prefill": "int8", "kv_cache": "fp32",
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_the_expected_disk_covers_what_a_build_writes(
    nano_bundle: Path, tmp_path: Path, precision: str
) -> None:
    """At most three times that: the estimate does not know each weight's bits."""
    bundle = shutil.copytree(nano_bundle, tmp_path / "nano")
    expected = plan_build(bundle, "cpu", precision).disk_bytes
    folder = build(bundle, "cpu", precision, threads=1)
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert written <= expected <= 3 * written
