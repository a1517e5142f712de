"""Bundle to engines: every stage lowered and built for a target; all are kept, or none."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import STAGES, FileEntry
from lira_engine.engines.builder import Progress, StageBuilder
from lira_engine.engines.fingerprint import lowering_fingerprint
from lira_engine.engines.options import CudaOptions, Options, TrtOptions, options_class
from lira_engine.engines.record import BUILD_NAME, Build, check_target, usable_build
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_directory, remove_leftovers
from lira_engine.system.disk import check_disk


def build(
    bundle: Bundle | Path | str,
    target: str = "cpu",
    precision: str = "fp32",
    options: Options | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = lambda stage, phase: None,
) -> Path:
    """Build the engines of a bundle for `target` and return their folder; do nothing where they are up to
    date, unless `force` is set.

    Args:
        precision: int8 and int4 are the language model's weights. options: those of the target, see
            `lira_engine.engines.options`; None for its defaults. threads: of the checks.

    Raises:
        LiraError: a target or precision that there is not, too little disk space or memory, a stage that the
            target refuses, or one whose outputs on its check vectors differ from the recorded ones; then no
            engine is left behind.
    """
    check_target(target, precision)
    options = options or options_class(target)()
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    builder = _builder(bundle, target, precision, options, threads, progress)
    folder = bundle.engine_folder(target, precision)
    if not force and _up_to_date(bundle, target, precision, builder.recorded):
        return folder
    _check_place(folder)
    remove_leftovers(folder.parent)
    sources = {stage: bundle.stage_sources(stage) for stage in STAGES}
    files = bundle.manifest.files
    portable = {stage: sum(files[name].bytes for name in names) for stage, names in sources.items()}
    check_disk(bundle.path, builder.expected_bytes(portable), "the build")
    with atomic_directory(folder, overwrite=True, marker=None) as partial:
        stages = {stage: builder.stage(stage, partial) for stage in STAGES}
        record = Build(
            lira_edge_version=metadata.version("lira-edge"),
            lowering=lowering_fingerprint(),
            target=target,
            precision=precision,
            options=builder.recorded,
            machine=builder.machine(),
            tools=builder.tools(),
            sources={name: files[name].sha256 for names in sources.values() for name in names},
            files={
                path.name: FileEntry(sha256_of(path), path.stat().st_size)
                for path in sorted(partial.iterdir())
            },
            precisions={stage: built.precision for stage, built in stages.items()},
            speedups={stage: built.speedup for stage, built in stages.items() if built.speedup is not None},
            errors={stage: built.errors for stage, built in stages.items()},
            seconds={stage: built.seconds for stage, built in stages.items()},
            peaks_mib={
                stage: built.peak_mib for stage, built in stages.items() if built.peak_mib is not None
            },
            kept_fp32={stage: built.kept_fp32 for stage, built in stages.items() if built.kept_fp32},
        )
        (partial / BUILD_NAME).write_text(record.dumps(), encoding="utf-8")
    return folder


def _check_place(folder: Path) -> None:
    """Raise LiraError where other things than engines lie in the place of an engine folder."""
    if folder.is_dir() and not (folder / BUILD_NAME).exists():
        for path in sorted(folder.iterdir()):
            if path.suffix not in (".onnx", ".data", ".engine", ".npz"):
                raise LiraError(f"{folder} holds {path.name}, which no build wrote: move it away")


def _builder(
    bundle: Bundle,
    target: str,
    precision: str,
    options: Options,
    threads: int | None,
    progress: Progress,
) -> StageBuilder:
    if isinstance(options, TrtOptions):
        from lira_engine.trt.build import TrtBuilder

        return TrtBuilder(bundle, target, precision, options, progress)
    if isinstance(options, CudaOptions):
        from lira_engine.ort.build_cuda import CudaBuilder

        return CudaBuilder(bundle, precision, options, threads, progress)
    from lira_engine.ort.build_cpu import OrtBuilder

    return OrtBuilder(bundle, target, precision, options, threads, progress)


def _up_to_date(bundle: Bundle, target: str, precision: str, options: dict[str, object]) -> bool:
    try:
        return usable_build(bundle, target, precision).options == options
    except LiraError:
        return False
