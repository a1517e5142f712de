"""Open a candidate's engines, or its lowered graphs."""

from __future__ import annotations

from pathlib import Path

from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.judgement import Candidate
from lira_engine.engines.runner import Engines
from lira_engine.open import open_files
from lira_engine.targets import target_named


def opened(candidate: Candidate) -> Engines:
    """Open the files that `file_of` names. Raises LiraError if they cannot run here."""
    target = target_named(candidate.target).with_driver(candidate.driver)
    bundle, threads = candidate.bundle, candidate.threads
    files = {stage: file_of(candidate, stage) for stage in STAGES}
    if candidate.graphs:
        from lira_engine.ort.opening import OrtOpener

        return open_files(OrtOpener(bundle, threads), files, candidate.target, candidate.precision)
    opener = target.opener(bundle, candidate.precision, candidate.options, threads)
    return open_files(opener, files, candidate.target, candidate.precision)


def file_of(candidate: Candidate, stage: str) -> Path:
    """Return a stage's engine file, or lowered graph."""
    name = f"{stage}.onnx" if candidate.graphs else target_named(candidate.target).file(stage)
    return candidate.folder / name
