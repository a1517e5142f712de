"""Bundle to engines: lower every stage for a target, check it on its check vectors, keep all or nothing."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lira_engine.atomic import atomic_directory
from lira_engine.bundle import Bundle
from lira_engine.engine_folder import (
    BUILD_NAME,
    Build,
    check_target,
    engine_file,
    tool_versions,
    usable_build,
)
from lira_engine.engines import open_llm, open_stage
from lira_engine.errors import LiraError
from lira_engine.manifest import STAGES, FileEntry
from lira_engine.passes import lower
from lira_engine.runner import LlmRunner
from lira_engine.verify import sha256_of

Progress = Callable[[str, str], None]
"""Called with a stage's name and what happens to it now: "lower", "write", "check" or "done"."""

# fp32 sums in another order move an output by about 1e-6 of its largest value per layer; a wrong axis, a lost
# bias or an attention mask off by one by more than 1e-2.
TOLERANCE = {"fp32": 1e-4}
_NOISE_MARGIN = 10  # between two roundings of fp32 sums, whose difference from fp64 is the noise
# Weights go into a file of their own that is memory-mapped; what is smaller stays in the graph.
_EXTERNAL_FROM_BYTES = 1024


def build(
    bundle: Bundle | Path | str,
    target: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
    force: bool = False,
    progress: Progress = lambda stage, phase: None,
) -> Path:
    """Build the engines of a bundle for `target` and return their folder; do nothing where they are up to
    date, unless `force` is set.

    Raises LiraError for a target or precision that there is not, too little disk space, and a stage whose
    outputs on its check vectors differ from the recorded ones; then no engine is left behind.
    """
    check_target(target, precision)
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    folder = bundle.engine_folder(target, precision)
    if not force and _up_to_date(bundle, target, precision):
        return folder
    sources = {stage: bundle.stage_sources(stage) for stage in STAGES}
    _check_disk(bundle, {name for names in sources.values() for name in names})
    errors: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    with atomic_directory(folder, overwrite=True, marker=None) as partial:
        for stage in STAGES:
            started = time.perf_counter()
            progress(stage, "lower")
            model = lower(ir.load(bundle.stage_file(stage)), target, stage, precision)
            progress(stage, "write")
            file = partial / engine_file(stage)
            ir.save(model, file, external_data=f"{file.name}.data", size_threshold_bytes=_EXTERNAL_FROM_BYTES)
            progress(stage, "check")
            errors[stage] = check_stage(bundle, stage, file, target, precision, threads)
            seconds[stage] = round(time.perf_counter() - started, 3)
            progress(stage, "done")
        record = Build(
            lira_edge_version=metadata.version("lira-edge"),
            target=target,
            precision=precision,
            options={},
            machine={"system": platform.system(), "arch": platform.machine()},
            tools=tool_versions(),
            sources={
                name: bundle.manifest.files[name].sha256 for names in sources.values() for name in names
            },
            files={
                path.name: FileEntry(sha256_of(path), path.stat().st_size)
                for path in sorted(partial.iterdir())
            },
            errors=errors,
            seconds=seconds,
        )
        (partial / BUILD_NAME).write_text(record.dumps(), encoding="utf-8")
    return folder


def check_stage(
    bundle: Bundle, stage: str, file: Path, target: str, precision: str, threads: int | None = None
) -> dict[str, float]:
    """Run a stage's file on the bundle's check vectors and return each output's relative error.

    Raises LiraError where one is above the tolerance, is not finite where it should be, or differs at all in
    an output of booleans or integers. The language model is run as a plain graph, its whole cache in and out,
    where the check vectors hold the cache; and with its runner's cache where they begin at position 0.
    """
    vectors = bundle.check_vectors(stage)
    errors: dict[str, float] = {}
    if vectors.inputs.keys() == bundle.manifest.stages[stage].inputs.keys():
        with open_stage(bundle, stage, file, threads) as runner:
            errors = _errors(runner.run(vectors.inputs), vectors.outputs)
    if stage == "llm" and not vectors.inputs["position"].any():
        with open_llm(bundle, file, target, threads) as llm:
            own_cache = _errors(_run_in_two_chunks(llm, vectors.inputs), vectors.outputs)
        errors |= {name: max(error, errors.get(name, 0.0)) for name, error in own_cache.items()}
    for output, error in errors.items():
        limit = accepted_error(precision, vectors.noise.get(output, 0.0))
        if not error <= limit:
            raise LiraError(
                f"the {target} engine of {stage} is wrong: output {output} differs from the recorded one by "
                f"{error:.1e} of the largest value, at most {limit:.0e} is accepted; "
                "nothing was kept. Report this with the output of `lira-edge doctor`"
            )
    return errors


def accepted_error(precision: str, noise: float) -> float:
    """The largest relative error of an output that the fp32 reference knows no better than to `noise`."""
    return max(TOLERANCE[precision], _NOISE_MARGIN * noise)


def _errors(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: relative_error(found[name], array) for name, array in expected.items() if name in found}


def _run_in_two_chunks(llm: LlmRunner, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The language model on check vectors with an empty cache: the second half of the rows reads what the
    first half left in the runner's own cache."""
    embeds, asked = inputs["inputs_embeds"][0], inputs["logit_positions"]
    middle = (len(embeds) + 1) // 2
    cache = llm.new_cache()
    chunks = []
    for start, stop in ((0, middle), (middle, len(embeds))):
        if start < stop:
            chunks.append(llm.forward(embeds[start:stop], cache, range(stop - start)))
    logits = np.concatenate([chunk.logits for chunk in chunks])
    hidden = np.concatenate([chunk.hidden for chunk in chunks])
    return {"logits": logits[None, asked], "hidden_states": hidden[None, asked]}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference divided by the largest absolute expected value; infinite where shapes,
    dtypes, non-finite values or anything that is not floating point differ."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(found, expected) else float("inf")
    finite = np.isfinite(expected)
    if (
        not np.array_equal(found[~finite], expected[~finite], equal_nan=True)
        or not np.isfinite(found[finite]).all()
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(expected[finite]).max())
    error = float(np.abs(found[finite].astype(np.float64) - expected[finite]).max())
    return error / scale if scale else error


def _up_to_date(bundle: Bundle, target: str, precision: str) -> bool:
    try:
        usable_build(bundle, target, precision)
    except LiraError:
        return False
    return True


def _check_disk(bundle: Bundle, names: set[str]) -> None:
    """An engine is about as large as its graph; fail now and not after minutes of work."""
    needed = int(1.1 * sum(bundle.manifest.files[name].bytes for name in names))
    free = shutil.disk_usage(bundle.path).free
    if free < needed:
        raise LiraError(
            f"{bundle.path} has {free >> 20} MiB of disk left, the build needs about {needed >> 20} MiB: "
            "free some, or move the bundle"
        )
