"""Describe a folder, as titled tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lira_engine.build import BuildPlan
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import verify_folder
from lira_engine.bundle.manifest import MANIFEST_NAME, StageSpec, TensorSpec
from lira_engine.engines.near_ties import flip_rows
from lira_engine.engines.origin import BUILT_HERE, origin, require_harmless
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import RECIPE_NAME, read_recipe
from lira_engine.engines.recipe_tables import recipe_tables
from lira_engine.engines.record import BUILD_NAME, Build, read_build
from lira_engine.engines.usable import usable_build
from lira_engine.engines.verified import require_verified
from lira_engine.errors import LiraError, quoted
from lira_engine.system.extras import lacking
from lira_engine.system.load import QUIET
from lira_engine.targets import TARGETS, target_named

Tables = list[tuple[str, list[tuple[str, ...]]]]
"""(title, rows of cells)"""

DESCRIBERS = "lira_edge.describers"


def describe(path: Path, verify: bool = False) -> Tables:
    """Return tables about a bundle, an engine folder, a recipe, or a folder that another package knows (a
    checkpoint).

    Checks the files' hashes, with `verify` also those in the cache. Raises LiraError if the folder is damaged
    or of another kind.
    """
    if path.name == RECIPE_NAME and path.is_file():
        path = path.parent
    if not path.is_dir():
        raise LiraError(
            f"{path} is not a folder; expected a bundle, an engine folder, a recipe or a checkpoint folder"
        )
    if (path / MANIFEST_NAME).exists():
        return _describe_bundle(Bundle.open(path, "full" if verify else "hashes"))
    if (path / BUILD_NAME).exists():
        return _describe_engines(path, verify)
    if (path / RECIPE_NAME).exists():
        return recipe_tables(path, read_recipe(path, "full" if verify else "hashes"))
    reasons = []
    for entry in metadata.entry_points(group=DESCRIBERS):
        missing, mend = lacking(entry)
        if missing:
            reasons.append(f"{entry.name} folders need {mend}")
            continue
        found = entry.load()(path)
        if found is not None:
            title, rows = found
            return [(title, [tuple(map(str, row)) for row in rows])]
    note = f" ({'; '.join(reasons)})" if reasons else ""
    raise LiraError(
        f"{path} is no bundle (no {MANIFEST_NAME}), no engine folder (no {BUILD_NAME}), no recipe (no "
        f"{RECIPE_NAME}), no checkpoint{note}"
    )


def _describe_bundle(bundle: Bundle) -> Tables:
    manifest = bundle.manifest
    preprocessing, tokens = manifest.preprocessing, manifest.tokens
    tile, pixel = preprocessing.tile, preprocessing.pixel
    size = sum(entry.bytes for entry in manifest.files.values())
    tables: Tables = [
        (
            f"bundle {manifest.name}",
            [
                ("folder", str(bundle.path)),
                ("written by", f"lira-edge {manifest.lira_edge_version}"),
                ("files", f"{len(manifest.files)}, {size_text(size)}, as listed in {MANIFEST_NAME}"),
                *(("from", row) for row in _provenance(manifest.provenance)),
            ],
        ),
        ("model", [(key, str(value)) for key, value in vars(manifest.model).items()]),
        (
            "input",
            [
                ("tiles", f"{tile.min_num} to {tile.max_num} of {tile.size} x {tile.size} pixels"),
                ("pixel encoder", f"{pixel.size} x {pixel.size} pixels"),
                ("region", f"brightness x {preprocessing.region.brightness:g} outside the mask"),
                ("special tokens", ", ".join(f"{key} {value}" for key, value in vars(tokens).items())),
            ],
        ),
        ("tasks", [(name, task.question) for name, task in manifest.prompts.tasks.items()]),
        ("stages", [row for name, stage in manifest.stages.items() for row in _stage_rows(name, stage)]),
        ("engines", engine_rows(bundle)),
    ]
    return tables


def _provenance(provenance: Mapping[str, object]) -> list[str]:
    """Return the checkpoint's files, and the repositories and revisions of files from the hub."""
    rows = []
    for name, facts in _objects(provenance.get("checkpoint_files")):
        rows.append(f"{name} {str(facts.get('sha256'))[:12]}")
    for part, source in _objects(provenance.get("hub")):
        rows.append(f"{part}: hub:{source.get('repository')}@{source.get('revision')}")
    return rows


def _objects(value: object) -> list[tuple[str, Mapping[str, object]]]:
    """Return the members of a JSON object that are objects."""
    found = value.items() if isinstance(value, dict) else ()
    return [(name, member) for name, member in found if isinstance(member, dict)]


def _stage_rows(name: str, stage: StageSpec) -> list[tuple[str, ...]]:
    return [
        (name, stage.file),
        *(("", f"<- {tensor_text(key, spec)}") for key, spec in _shown(stage.inputs)),
        *(("", f"-> {tensor_text(key, spec)}") for key, spec in _shown(stage.outputs)),
    ]


def _shown(tensors: Mapping[str, TensorSpec]) -> list[tuple[str, TensorSpec]]:
    """Return the tensors, numbered ones (a cache's layers) as one with the range in its name."""
    shown: dict[str, tuple[str, TensorSpec, int]] = {}
    for name, spec in tensors.items():
        stem, _, number = name.rpartition(".")
        key = stem if number.isdigit() else name
        first, _, count = shown.get(key, (name, spec, 0))
        shown[key] = (first, spec, count + 1)
    return [
        (f"{key}.0 to .{count - 1}" if count > 1 else first, spec)
        for key, (first, spec, count) in shown.items()
    ]


def tensor_text(name: str, spec: TensorSpec) -> str:
    """Return text such as `pixel_values float32 [T, 3, 448, 448]`."""
    return f"{name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def size_text(size: int) -> str:
    """Return a number of bytes as text such as `12.5 MiB`."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


@dataclass(frozen=True)
class BuiltEngines:
    """An engine folder of a bundle.

    Attributes:
        name: of the folder. build: its record; None if it may not be used.
        reason: why `lira-edge run` refuses the engines on this machine, with the command that mends it; None
            if they are ready. origin: where usable ones come from (engines.origin).
    """

    name: str
    build: Build | None
    reason: str | None
    origin: str = ""


def built_engines(bundle: Bundle) -> list[BuiltEngines]:
    """Return what `lira-edge build` made for any target, sorted by name."""
    found = []
    for record in sorted((bundle.path / "engines").glob(f"[!.]*/{BUILD_NAME}")):
        name = record.parent.name
        target, _, precision = name.rpartition("-")
        try:
            build = usable_build(bundle, target_named(target), precision)
            found.append(BuiltEngines(name, build, *_readiness(build, bundle)))
        except LiraError as error:
            found.append(BuiltEngines(name, None, str(error)))
    return found


def engine_rows(bundle: Bundle) -> list[tuple[str, ...]]:
    """Return a bundle's engines: "ready" if `lira-edge run` accepts them on this machine, else why not."""
    rows: list[tuple[str, ...]] = [
        (one.name, _state_text(one.reason, one.origin) if one.build else str(one.reason))
        for one in built_engines(bundle)
    ]
    return rows or [("none", f"run `lira-edge build {quoted(bundle.path)}`")]


def _state_text(reason: str | None, origin: str) -> str:
    if reason is not None:
        return f"built, but {reason}"
    return "ready" if origin == BUILT_HERE else f"ready, {origin}"


def _readiness(build: Build, bundle: Bundle) -> tuple[str | None, str]:
    """Return why usable engines do not run on this machine, or None, and where they come from."""
    target = target_named(build.target)
    unfit = target.unfit(build, bundle.path)
    if unfit:
        return unfit, ""
    try:
        target.check_runtime()
        found = origin(build, target, bundle.engine_folder(build.target, build.precision))
        require_harmless(found, build, target, bundle.path)
        require_verified(build, target, bundle.path)
    except LiraError as error:
        return str(error), ""
    return None, found.known or "not built here: the first run checks them"


def _describe_engines(path: Path, verify: bool) -> Tables:
    target, _, precision = path.resolve().name.rpartition("-")
    bundle = path.resolve().parent.parent
    mend = "build it again with `lira-edge build BUNDLE`"
    if target in TARGETS and precision in (*TARGETS[target].precisions, MIXED):
        mend = f"run `{TARGETS[target].build_command(bundle, precision)}`"
    build = read_build(path, mend)
    verify_folder(path, build.files, mend, "full" if verify else "hashes")
    return [
        (
            f"engines for {build.target}, {build.precision}",
            [
                ("folder", str(path)),
                *_state(bundle, target, precision),
                ("built by", f"lira-edge {build.lira_edge_version}"),
                ("built on", ", ".join(f"{key} {value}" for key, value in build.machine.items())),
                ("tools", ", ".join(f"{key} {value}" for key, value in build.tools.items())),
                *((f"option {key}", str(value)) for key, value in build.options.items()),
                ("verified", "no" if build.verified is None else f"on {build.verified.setting.text()}"),
                *((f"{stage} in fp32", ", ".join(names)) for stage, names in build.kept_fp32.items()),
                *(("chosen", line) for line in build.said),
                *_judged_rows(build),
            ],
        ),
        ("files", [(name, size_text(e.bytes), e.sha256[:12]) for name, e in build.files.items()]),
        ("built from", [(name, digest[:12]) for name, digest in build.sources.items()]),
        stage_table(build),
    ]


def _judged_rows(build: Build) -> list[tuple[str, ...]]:
    """Return near ties that engines decide otherwise, their recipe, how it stores their weights, and what
    the judge found."""
    rows = flip_rows(build.flips)
    if build.recipe:
        rows.append(("recipe", build.recipe[:12]))
    for stage, forms in build.forms.items():
        rows.append((f"{stage} weights", ", ".join(f"{count} {form}" for form, count in forms.items())))
    return rows + (list(build.judgement.rows()) if build.judgement is not None else [])


def _state(bundle: Path, target: str, precision: str) -> list[tuple[str, ...]]:
    """Return whether engines are ready, if their folder is inside its bundle."""
    if not (bundle / MANIFEST_NAME).is_file():
        return []
    try:
        opened = Bundle.open(bundle)
        build = usable_build(opened, target_named(target), precision)
        reason, whence = _readiness(build, opened)
        return [("state", _state_text(reason, whence)), *([("origin", whence)] if whence else [])]
    except LiraError as error:
        return [("state", str(error))]


def stage_table(build: Build) -> tuple[str, list[tuple[str, ...]]]:
    """Return the title and the rows of a table of the built stages."""
    sizes = {
        stage: sum(entry.bytes for name, entry in build.files.items() if name.startswith(f"{stage}."))
        for stage in build.precisions
    }
    return (
        "size, relative error on the check vectors, build time, peak memory of the build",
        [
            (
                stage,
                precision,
                size_text(sizes[stage]),
                f"{max(errors.values()):.1e}"
                if (errors := build.errors.get(stage))
                else "wrong"
                if stage in build.wrong
                else "not run",
                f"{build.seconds.get(stage, 0):.1f} s",
                f"{build.peaks_mib[stage]:,} MiB" if stage in build.peaks_mib else "",
                _speedup(build, stage),
            )
            for stage, precision in build.precisions.items()
        ],
    )


def _speedup(build: Build, stage: str) -> str:
    if stage not in build.speedups:
        return ""
    others = build.others.get(stage, 0.0)
    beside = f", others used {others:.1f} cores meanwhile" if others > QUIET else ""
    return f"int8 {build.speedups[stage]:.2f}x fp32{beside}"


def plan_tables(plan: BuildPlan) -> Tables:
    """Return tables about what a build would do."""
    last = "never built here" if plan.last_seconds is None else duration_text(plan.last_seconds)
    memory = "not measured" if plan.peak_mib is None else f"{plan.peak_mib:,} MiB"
    if plan.available_mib is not None:
        memory += f", {plan.available_mib:,} MiB are available"
    stages: list[tuple[str, ...]] = [
        (stage, " or ".join(plan.precisions[stage]), size_text(size))
        for stage, size in plan.engine_bytes.items()
    ]
    return [
        (
            f"would write {plan.folder}",
            [
                ("state", "up to date: nothing to do without --force" if plan.up_to_date else "to be built"),
                ("engines", size_text(sum(plan.engine_bytes.values()))),
                ("disk", f"{size_text(plan.disk_bytes)} at most, {size_text(plan.free_bytes)} are free"),
                ("memory", memory),
                ("last time", last),
            ],
        ),
        ("stage, precision, about the size of its engine", stages),
    ]


def duration_text(seconds: float) -> str:
    """Return text such as "45 s" or "12 min"."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
