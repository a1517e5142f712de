"""Build the engines of a bundle: every stage, lowered for a target; keep all of them or none."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import STAGES, FileEntry
from lira_engine.engines.accuracy import WrongOutput
from lira_engine.engines.builder import BuiltStage, LowersFirst, Progress, StageBuilder
from lira_engine.engines.fingerprint import lowering_fingerprint
from lira_engine.engines.judgement import Candidate, Judge, Judgement, installed_judge, judged_flips
from lira_engine.engines.near_ties import Flip
from lira_engine.engines.options import Options
from lira_engine.engines.origin import origin, remember_built
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import RECIPE_NAME, Recipe, StageRecipe, read_recipe
from lira_engine.engines.recipe_fit import check_recipe
from lira_engine.engines.record import BUILD_NAME, Build
from lira_engine.engines.target import Target
from lira_engine.engines.usable import usable_build
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_directory, remove_leftovers
from lira_engine.system.cache import Durations
from lira_engine.system.disk import check_disk, free_bytes
from lira_engine.system.machine import available_mib
from lira_engine.targets import target_named
from lira_engine.trust.signer import Signer, sign_again, sign_folder
from lira_engine.version import __version__


@dataclass(frozen=True)
class BuildPlan:
    """What `build` would do.

    Attributes:
        folder: where it writes. up_to_date: it has nothing to do. precisions: the ones that each stage may
            have. engine_bytes: expected size of each stage's engine.
        disk_bytes: expected disk use during the build, of free_bytes. peak_mib: expected peak memory, of
            available_mib; None if it was not measured.
        last_seconds: duration of the same build last time on this machine.
    """

    folder: Path
    up_to_date: bool
    precisions: dict[str, tuple[str, ...]]
    engine_bytes: dict[str, int]
    disk_bytes: int
    free_bytes: int
    peak_mib: int | None
    available_mib: int | None
    last_seconds: float | None


def build(
    bundle: Bundle | Path | str,
    target: str = "cpu",
    precision: str | None = None,
    options: Options | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = lambda stage, phase: None,
    recipe: Path | str | None = None,
    signer: Signer | None = None,
    warned: Callable[[str], None] = lambda line: None,
) -> Path:
    """Build the engines of a bundle for `target` and return their folder; do nothing if they are up to date
    and `force` is not set.

    Args:
        precision: int8 and int4 quantize the language model's weights. None is fp32, or "mixed" with a
            recipe. options: of the target's `options` class; None for its defaults. threads: for the checks.
        force: also keeps engines that a judge refuses, and engines for a GPU whose outputs are wrong, which
            their record then says.
        recipe: folder that `lira-edge calibrate` wrote. signer: signs the engines, also those that are up to
            date. warned: called with what the user must know of finished engines.

    Raises LiraError for an unknown target or precision, too little disk space or memory, a stage that the
    target refuses, wrong outputs on the check vectors, a recipe that does not fit the bundle and the target,
    or engines beyond its budget; then no engine is kept.
    """
    work = _Work.prepare(bundle, target, precision, options, threads, progress, recipe)
    kept = None if force else work.kept()
    if kept is not None:
        if signer is not None:
            sign_again(signer, work.folder, kept.signed_files())
        return work.folder
    _check_place(work.folder, work.target)
    remove_leftovers(work.folder.parent)
    check_disk(work.bundle.path, work.target.expected_bytes(work.precision, work.portable), "the build")
    started = time.monotonic()
    with atomic_directory(work.folder, overwrite=True, marker=None) as partial:
        record = work.run(partial, force)
        content = record.dumps().encode()
        record = replace(record, digest=hashlib.sha256(content).hexdigest())
        (partial / BUILD_NAME).write_bytes(content)
        if signer is not None:
            sign_folder(signer, partial, work.folder.name, record.signed_files())
    _DURATIONS.keep(work.key, time.monotonic() - started)
    try:  # what was written, not what is there by now
        remember_built(record)
    except LiraError as error:
        follows = "run checks the engines each time, and refuses those that are code"
        warned(f"it cannot be recorded that this user built them ({error}): {follows}")
    return work.folder


def plan_build(
    bundle: Bundle | Path | str,
    target: str = "cpu",
    precision: str | None = None,
    options: Options | None = None,
    force: bool = False,
    recipe: Path | str | None = None,
) -> BuildPlan:
    """Return what `build` would do with the same arguments, without writing. Raises LiraError as `build` does
    before it begins."""
    work = _Work.prepare(bundle, target, precision, options, None, lambda stage, phase: None, recipe)
    _check_place(work.folder, work.target)
    return BuildPlan(
        folder=work.folder,
        up_to_date=not force and work.kept() is not None,
        precisions={stage: work.stage_precisions(stage) for stage in STAGES},
        engine_bytes=work.target.expected_engine_bytes(work.precision, work.portable),
        disk_bytes=work.target.expected_bytes(work.precision, work.portable),
        free_bytes=free_bytes(work.bundle.path),
        peak_mib=work.target.expected_peak_mib(work.precision, work.portable),
        available_mib=available_mib(),
        last_seconds=_DURATIONS.last(work.key),
    )


_DURATIONS = Durations("engine-build-times")


def chosen_precision(precision: str | None, recipe: object, default: str = "fp32") -> str:
    """Return the precision of a build. Raises LiraError for one that does not go with the recipe, or with
    none."""
    if recipe is None:
        if precision == MIXED:
            raise LiraError(
                f"precision {MIXED} needs a recipe: give --recipe RECIPE, which `lira-edge calibrate` writes"
            )
        return precision or default
    if precision not in (None, MIXED):
        raise LiraError(f"a recipe makes {MIXED} engines: leave precision {precision} out, or the recipe")
    return MIXED


@dataclass(frozen=True)
class _RecipeWork:
    """A checked recipe. shares: see `check_recipe`."""

    folder: Path
    recipe: Recipe
    shares: dict[str, float]
    judge: Judge


@dataclass(frozen=True)
class _Work:
    """A prepared build: its checked arguments and its builder."""

    bundle: Bundle
    target: Target
    precision: str
    builder: StageBuilder
    options: dict[str, object]
    threads: int | None
    progress: Progress
    recipe: _RecipeWork | None = None

    @classmethod
    def prepare(
        cls,
        bundle: Bundle | Path | str,
        target: str,
        precision: str | None,
        options: Options | None,
        threads: int | None,
        progress: Progress,
        recipe: Path | str | None = None,
    ) -> _Work:
        chosen = target_named(target)
        precision = chosen_precision(precision, recipe)
        chosen.check_precision(precision)
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        options = chosen.options() if options is None else options
        if not isinstance(options, chosen.options):
            raise LiraError(
                f"target {target} takes options of class {chosen.options.__name__}, "
                f"got {type(options).__name__}"
            )
        recorded = chosen.recorded_options(options, precision)
        if recipe is None:
            builder = chosen.builder(bundle, precision, options, threads, progress)
            return cls(bundle, chosen, precision, builder, recorded, threads, progress)
        read = read_recipe(recipe)
        shares = check_recipe(read, bundle, chosen)
        folder = Path(recipe).parent if Path(recipe).name == RECIPE_NAME else Path(recipe)
        builder = chosen.recipe_builder(bundle, read, options, threads, progress)
        given = _RecipeWork(folder, read, shares, installed_judge())
        return cls(bundle, chosen, precision, builder, recorded, threads, progress, given)

    @property
    def folder(self) -> Path:
        return self.bundle.engine_folder(self.target.name, self.precision)

    @property
    def portable(self) -> dict[str, int]:
        """Bytes of each stage's portable files; with a recipe, of files whose engine would be as large if the
        recipe left it alone."""
        files = self.bundle.manifest.files
        sizes = {
            stage: sum(files[name].bytes for name in self.bundle.stage_sources(stage)) for stage in STAGES
        }
        if self.recipe is None:
            return sizes
        return {stage: int(size * self.recipe.shares[stage]) for stage, size in sizes.items()}

    def part(self, stage: str) -> StageRecipe | None:
        """Return the recipe's part for a stage, if there is a recipe."""
        return None if self.recipe is None else self.recipe.recipe.stage(stage)

    def stage_precisions(self, stage: str) -> tuple[str, ...]:
        """Return the precisions that a stage may have."""
        if self.recipe is not None:
            return (self.target.stage_precision(self.precision, stage, self.part(stage)),)
        return self.target.stage_precisions(self.precision, stage)

    @property
    def key(self) -> str:
        """Key of the recorded duration: builds with the same key take about the same time."""
        weights = sum(self.portable.values())
        return f"{self.bundle.manifest.name} {weights} {self.target.name} {self.precision} {self.options}"

    def kept(self) -> Build | None:
        """Return the record of engines that are up to date; None if there are none. Those that were only
        checked here do not count: whoever builds them wants their own."""
        try:
            found = usable_build(self.bundle, self.target, self.precision)
            vouched = origin(found, self.target, self.folder).vouched
        except LiraError:
            return None
        if found.options != self.options or not vouched:
            return None
        if found.wrong or (found.judgement is not None and found.judgement.forced):
            return None
        fits = self.recipe is None or found.recipe == self.recipe.recipe.digest
        return found if fits else None

    def run(self, folder: Path, force: bool) -> Build:
        """Build every stage into `folder` and return the record. `force`: keep what the judge refuses."""
        judgement = None
        if isinstance(self.builder, LowersFirst) and self.recipe is not None:
            for stage in STAGES:
                self.builder.lower(stage, folder)
            judgement = self._judged(self.recipe, folder, True, force)
        stages = {stage: self._stage(stage, folder, force) for stage in STAGES}
        flips = {stage: one.flips for stage, one in stages.items() if one.flips}
        if self.recipe is not None and judgement is None:
            judgement = self._judged(self.recipe, folder, False, force)
        elif self.recipe is None and flips:
            judgement = self._judged_flips(tuple(chain.from_iterable(flips.values())), folder, force)
        files = self.bundle.manifest.files
        sources = [name for stage in STAGES for name in self.bundle.stage_sources(stage)]
        return Build(
            lira_edge_version=__version__,
            lowering=lowering_fingerprint(self.target.sources),
            target=self.target.name,
            precision=self.precision,
            options=self.options,
            machine=self.target.machine(),
            tools=self.target.tools(),
            sources={name: files[name].sha256 for name in sources},
            files={
                path.name: FileEntry(sha256_of(path), path.stat().st_size)
                for path in sorted(folder.iterdir())
            },
            precisions={stage: one.precision for stage, one in stages.items()},
            speedups={stage: one.speedup for stage, one in stages.items() if one.speedup is not None},
            others={stage: one.others for stage, one in stages.items() if one.others is not None},
            errors={stage: one.errors for stage, one in stages.items()},
            seconds={stage: one.seconds for stage, one in stages.items()},
            peaks_mib={stage: one.peak_mib for stage, one in stages.items() if one.peak_mib is not None},
            kept_fp32={stage: one.kept_fp32 for stage, one in stages.items() if one.kept_fp32},
            chosen={name: value for one in stages.values() for name, value in one.chosen.items()},
            said=tuple(line for one in stages.values() for line in one.said),
            wrong={stage: one.wrong for stage, one in stages.items() if one.wrong},
            recipe="" if self.recipe is None else self.recipe.recipe.digest,
            forms=_form_counts(self.recipe.recipe) if self.recipe is not None else {},
            flips=flips,
            judgement=judgement,
        )

    def _stage(self, stage: str, folder: Path, force: bool) -> BuiltStage:
        """Build a stage. `force`: an engine for a GPU is kept although its outputs are wrong. It does not run
        before `lira-edge verify` found it right, whose --bisect needs it to name the node."""
        try:
            return self.builder.stage(stage, folder)
        except WrongOutput as error:
            if not self.target.on_gpu:
                raise
            if not force:
                path, precision = self.bundle.path, self.precision
                keep = self.target.build_command(path, precision, self.options)
                search = self.target.verify_command(path, precision)
                raise WrongOutput(
                    f"{error}; nothing was kept. To find the node: `{keep} --force`, then `{search} --bisect`"
                ) from error
            self.progress(stage, "done")
            return BuiltStage(self.stage_precisions(stage)[0], {}, 0.0, wrong=str(error))

    def _judged(self, given: _RecipeWork, folder: Path, graphs: bool, force: bool) -> Judgement:
        """Return what the judge says. Raises LiraError if it refuses the engines and `force` is not set."""
        found = given.judge(
            replace(self._candidate(folder), recipe=given.recipe, recipe_folder=given.folder, graphs=graphs)
        )
        return self._kept(found, force, "are beyond the budget", "Calibrate with a larger --budget, or keep")

    def _judged_flips(self, flips: tuple[Flip, ...], folder: Path, force: bool) -> Judgement:
        """Return what the judge says about near ties that came out otherwise. Raises LiraError as `_judged`
        does."""
        found = judged_flips(replace(self._candidate(folder), flips=flips))
        return self._kept(found, force, "decide near ties otherwise than the reference, at a cost", "Keep")

    def _candidate(self, folder: Path) -> Candidate:
        return Candidate(
            self.bundle,
            None,
            None,
            self.target.name,
            self.options,
            folder,
            threads=self.threads,
            progress=lambda what: self.progress("judge", what),
            precision=self.precision,
        )

    def _kept(self, found: Judgement, force: bool, why: str, mend: str) -> Judgement:
        self.progress("judge", "done")
        if found.refused and not force:
            raise LiraError(
                f"the {self.target.name}-{self.precision} engines {why}: {found.refused}; "
                f"they were not kept. {mend} them with --force"
            )
        return replace(found, forced=bool(found.refused))


def _form_counts(recipe: Recipe) -> dict[str, dict[str, int]]:
    """Return how many weights of each stage have each form."""
    counts: dict[str, dict[str, int]] = {}
    for stage, part in recipe.stages.items():
        for form in part.forms.values():
            of_stage = counts.setdefault(stage, {})
            of_stage[form.text()] = of_stage.get(form.text(), 0) + 1
    return counts


def _check_place(folder: Path, target: Target) -> None:
    """Raises LiraError if `folder` has no record of a build, but files that are not engines."""
    if folder.is_dir() and not (folder / BUILD_NAME).exists():
        for path in sorted(folder.iterdir()):
            if path.suffix not in (".onnx", ".data", ".npz", target.suffix):
                raise LiraError(f"{folder} holds {path.name}, which no build wrote: move it away")
