"""fp32 engines may decide near ties otherwise than the reference, if a judge finds that harmless."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lira_engine import verify
from lira_engine.build import build
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import MAX_TILES
from lira_engine.engines import setting
from lira_engine.engines.judgement import Candidate, Judgement
from lira_engine.engines.record import Build, read_build
from lira_engine.errors import LiraError
from lira_engine.inspect import describe
from lira_engine.main import main
from lira_engine.ort import target as ort_target
from lira_engine.ort.device import CPU
from lira_engine.system.machine import Gpu
from lira_engine.verify import tables
from lira_runtime.verify_answer import check_answer

pytestmark = pytest.mark.portable
verify_engines = partial(verify.verify_engines, threads=1, ask=check_answer)
Plant = Callable[[Mapping[int, float]], None]
HARMLESS, HARMFUL = 6, 3
"""Queries of lira-nano on the planted picture. The first one moves masks by 0.4 %, the other one by 23 %."""
TIE, NO_TIE = 1e-6, 1e-2
BOTH = pytest.mark.parametrize("target", ["cpu", "cuda"])


@pytest.fixture
def bundle(nano_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """lira-nano without engines, on a machine whose GPU is the CPU."""
    monkeypatch.setattr(ort_target, "cuda_device", lambda precision, provider, allow: CPU)
    monkeypatch.setattr(setting, "gpus", lambda: [Gpu("RTX 4090", "24564 MiB", "580.1", "8.9")])
    yield Path(shutil.copytree(nano_bundle, tmp_path / "b", ignore=shutil.ignore_patterns("engines")))


@pytest.fixture
def plant(bundle: Path, plant_ties: Callable[[Path], Plant]) -> Plant:
    return plant_ties(bundle)


def built(bundle: Path, target: str = "cpu", **more: Any) -> Build:
    return read_build(build(bundle, target, "fp32", threads=1, **more), "")


@BOTH
def test_a_build_keeps_harmless_flips_of_near_ties_and_says_so(
    target: str, bundle: Path, plant: Plant
) -> None:
    exact = built(bundle, target)
    assert exact.flips == {} and exact.judgement is None
    plant({HARMLESS: TIE, HARMLESS + 4: 2 * TIE})
    found = built(bundle, target, force=True)
    assert found.files == exact.files
    first, second = found.flips["pixel_encoder"]
    assert (first.output, first.element, second.element) == ("query_valid", HARMLESS, HARMLESS + 4)
    assert (first.margin, first.limit) == (pytest.approx(TIE), 2e-4)
    assert found.errors["pixel_encoder"]["query_valid"] == 2 / 16
    judged = found.judgement
    assert judged is not None and not judged.refused and not judged.forced and not judged.not_judged
    assert set(judged.losses) == {"tokens", "iou", "ciou"} and judged.losses["iou"].limit == 0.01
    assert 0 < judged.losses["iou"].loss < 0.01 and judged.pictures == 1
    said = str(describe(bundle / "engines" / f"{target}-fp32"))
    assert "pixel_encoder: 2 came out otherwise; margins up to 2.0e-06, at most 2e-04 is rounding" in said
    assert "query_valid 6 is now false (margin 1.0e-06)" in said
    assert "engines on 2 questions, with and without the flips, about 1 picture" in said
    assert built(bundle, target) == found  # up to date


@BOTH
def test_a_flip_that_is_no_near_tie_is_named_and_refused(target: str, bundle: Path, plant: Plant) -> None:
    plant({HARMLESS: NO_TIE})
    with pytest.raises(
        LiraError,
        match=rf"the {target} engine of pixel_encoder is wrong: output query_valid {HARMLESS} is now false "
        r"\(margin 1\.0e-02\), the recorded one is not, and rounding explains margins of at most 2e-04 .*",
    ):
        built(bundle, target)
    plant({HARMLESS: TIE, 10: NO_TIE, 11: 2 * NO_TIE})
    with pytest.raises(LiraError, match=r"query_valid 11 .*\(margin 2\.0e-02\).*; 2 flips are no near ties"):
        built(bundle, target)
    plant({HARMLESS: float("nan")})
    with pytest.raises(LiraError, match=r"query_valid 6 .*\(margin nan\)"):
        built(bundle, target)
    assert not (bundle / "engines" / f"{target}-fp32").exists()


def test_without_recorded_margins_every_decision_must_be_the_recorded_one(
    bundle: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant({HARMLESS: TIE})
    planted = Bundle.check_vectors
    monkeypatch.setattr(
        Bundle, "check_vectors", lambda bundle, stage: replace(planted(bundle, stage), margins={})
    )
    with pytest.raises(
        LiraError, match=r"query_valid differs .* 6\.2e-02 of its elements, at most 0.*margins"
    ):
        built(bundle)


def test_harmful_flips_are_refused_and_forced(
    bundle: Path, plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    plant({HARMFUL: TIE})
    command = ("build", str(bundle), "--threads", "1")
    with pytest.raises(SystemExit) as caught:
        main(command)
    told = capsys.readouterr().err
    assert caught.value.code == 2 and told.count("\n") == 1
    assert "engines decide near ties otherwise than the reference, at a cost: " in told
    assert "mask IoU with fp32 loses" in told and told.endswith(
        "they were not kept. Keep them with --force\n"
    )
    with pytest.raises(SystemExit) as caught:
        main((*command, "--force"))
    printed = capsys.readouterr().out
    assert caught.value.code == 0 and "near ties on the check vectors" in printed
    assert "kept by --force" in " ".join(printed.split()) and printed.splitlines()[-1].endswith("--force")
    found = verify_engines(bundle, "cpu", "fp32")  # whoever kept them knows
    assert found.judgement is not None and found.judgement.forced


@BOTH
def test_verify_judges_flips_on_the_device(target: str, bundle: Path, plant: Plant) -> None:
    built(bundle, target)
    plant({HARMLESS: TIE})
    said: list[str] = []
    found = verify_engines(bundle, target, "fp32", progress=said.append)
    assert [flip.element for flip in found.flips["pixel_encoder"]] == [HARMLESS]
    assert found.judgement is not None and not found.judgement.refused
    assert "near ties" in said and "near ties: question gcg" in said
    record = read_build(bundle / "engines" / f"{target}-fp32", "")
    assert record.verified == found and record.flips == {}
    shown = str(tables(found, record))
    assert "query_valid 6 is now false (margin 1.0e-06)" in shown and "mask IoU with fp32" in shown
    plant({HARMFUL: TIE})
    with pytest.raises(LiraError, match=r"at a cost: .*mask IoU.* loses .*--unverified"):
        verify_engines(bundle, target, "fp32")
    assert read_build(bundle / "engines" / f"{target}-fp32", "").verified is None
    plant({HARMFUL: NO_TIE})
    with pytest.raises(LiraError, match=r"query_valid 3 is now true \(margin 1\.0e-02\)"):
        verify_engines(bundle, target, "fp32")


def test_the_judge_opens_engines_as_verify_did(
    bundle: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(bundle, "cuda")
    plant({HARMLESS: TIE})
    monkeypatch.setattr(ort_target.CudaTarget, "with_driver", lambda target, driver: target)
    asked: list[Candidate] = []

    def judged(candidate: Candidate) -> Judgement:
        asked.append(candidate)
        return Judgement()

    monkeypatch.setattr(verify, "judged_flips", judged)
    verify_engines(bundle, "cuda", "fp32", driver="pycuda")
    (one,) = asked
    assert one.driver == "pycuda"
    assert (one.options["step_graph"], one.options["tiles"]) == ("on", MAX_TILES + 1)


def test_without_a_judge_near_ties_are_kept_and_it_is_said_that_nobody_judged(
    bundle: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(bundle)
    plant({HARMFUL: TIE})
    known = metadata.entry_points

    def entries(group: str) -> Any:
        return [] if group == "lira_edge.judges" else known(group=group)

    monkeypatch.setattr(metadata, "entry_points", entries)
    found = verify_engines(bundle, "cpu", "fp32")
    assert found.judgement is not None and "found none" in found.judgement.not_judged
    shown = str(tables(found, read_build(bundle / "engines" / "cpu-fp32", "")))
    assert (
        "not judged: judging masks and tokens needs one judge" in shown
        and "query_valid 3 is now true" in shown
    )
    plant({HARMFUL: NO_TIE})
    with pytest.raises(LiraError, match="query_valid 3"):
        verify_engines(bundle, "cpu", "fp32")
