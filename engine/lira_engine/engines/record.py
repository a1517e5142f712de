"""`build.json`: what an engine folder was built from, with what, for what; and whether it may be loaded."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lira_engine.bundle import schema
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import Verify, verify_folder
from lira_engine.bundle.manifest import STAGES, FileEntry
from lira_engine.engines.builder import stage_precisions
from lira_engine.engines.fingerprint import lowering_fingerprint
from lira_engine.engines.options import option_arguments, read_options
from lira_engine.errors import LiraError, quoted

FORMAT = "lira-engines"
FORMAT_VERSION = 1
BUILD_NAME = "build.json"
PRECISIONS = {
    "cpu": ("fp32", "int8", "int4"),
    "cuda": ("fp16", "int4", "fp32"),
    "tensorrt": ("fp16", "int4", "fp32"),
    "tensorrt-rtx": ("fp16", "int4", "fp32"),
}
"""The precisions of each target, the usual one first."""


@dataclass(frozen=True)
class Setting:
    """What decides how the same engine file computes: the processor's name, the driver's version (a board's
    L4T; "" where there is none), and the package that runs engines, with its version."""

    device: str
    driver: str
    runtime: str

    def text(self) -> str:
        driver = f", driver {self.driver}" if self.driver else ""
        return f"{self.device}{driver}, {self.runtime}"


@dataclass(frozen=True)
class Verified:
    """What `lira-edge verify` found. See `lira_engine.verify`.

    Attributes:
        when: UTC, ISO 8601. errors: of each stage's outputs on the check vectors (see engines.accuracy).
        tokens, agree: positions of a given answer, and at how many of them the next token is that of the
            model in fp32; None where that one was not run. cutting: how far the answer's logits are from
            those of the same rows in one go. lowered: of the language model's outputs beside those of its
            own lowered graph, where the build recorded them. placement: of target cuda, see
            lira_engine.ort.placement.
    """

    when: str
    setting: Setting
    errors: dict[str, dict[str, float]]
    tokens: int
    agree: int | None
    cutting: float = 0.0
    lowered: dict[str, float] = field(default_factory=dict)
    placement: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Build:
    """The record of a build.

    `lowering` is the fingerprint of the code that decided how engines came out (see engines.fingerprint),
    `sources` holds the SHA-256 of the bundle's files that it was made from, `precisions` what each stage came
    out in, `speedups` int8's over fp32 where both were tried, `errors` those on the check vectors where they
    ran (see engines.accuracy), `peaks_mib` the memory of the processes that compiled a stage, `kept_fp32`
    the weights of a stage that do not fit into fp16, `verified` what `lira-edge verify` found last.
    """

    lira_edge_version: str
    lowering: str
    target: str
    precision: str
    options: dict[str, Any]
    machine: dict[str, str]
    tools: dict[str, str]
    sources: dict[str, str]
    files: dict[str, FileEntry]
    precisions: dict[str, str]
    speedups: dict[str, float]
    errors: dict[str, dict[str, float]]
    seconds: dict[str, float]
    peaks_mib: dict[str, int] = field(default_factory=dict)
    kept_fp32: dict[str, tuple[str, ...]] = field(default_factory=dict)
    verified: Verified | None = None

    def dumps(self) -> str:
        """The text of `build.json`."""
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, **schema.write(self)}
        return json.dumps(data, indent=1) + "\n"


def build_command(
    bundle: Path, target: str, precision: str, options: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """What the user types to make the engines, again with the `options` of a record."""
    arguments = option_arguments(target, precision, options)
    return f"lira-edge build {quoted(bundle)} --target {target} --precision {precision}{arguments}"


def usual_precision(target: str) -> str:
    """The precision of a target where none is asked for. Raises LiraError where there is no such target."""
    if target == "portable":
        return "fp32"
    check_target(target)
    return PRECISIONS[target][0]


def check_target(target: str, precision: str | None = None) -> None:
    """Raise LiraError for what this version cannot build, with the choices that there are."""
    if target == "portable":
        raise LiraError("target portable runs a bundle's graphs as they are: nothing is built or verified")
    if target not in PRECISIONS:
        raise LiraError(
            f"there is no target {target!r}; expected {', '.join(PRECISIONS)}, or portable to run the graphs "
            "as they are"
        )
    if precision is not None and precision not in PRECISIONS[target]:
        choices = ", ".join(PRECISIONS[target])
        raise LiraError(f"precision {precision!r} is not one that target {target} has: {choices}")


def read_build(folder: Path, mend: str) -> Build:
    """The record of an engine folder, its files not yet checked. Raises LiraError where there is none."""
    path = folder / BUILD_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise LiraError(f"{folder} holds no engines; {mend}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise LiraError(f"{path} cannot be read ({str(error).splitlines()[0]}); {mend}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise LiraError(f"{path} is not the record of a build; {mend}")
    version = data.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise LiraError(f"{path} has format version {version!r}, expected {FORMAT_VERSION}; {mend}")
    try:
        return schema.read(Build, data, str(path))
    except LiraError as error:
        raise LiraError(f"{error}; {mend}") from None


def usable_build(bundle: Bundle, target: str, precision: str, verify: Verify = "hashes") -> Build:
    """The record of engines that may be loaded: built for this target from the bundle as it is now, by this
    version of lira-edge, and not altered since. Raises LiraError with the reason and what mends it.

    CPU engines are standard graphs, so another ONNX Runtime or another CPU than at the build does not matter.
    Those of TensorRT load in the version and on the kind of machine that they were built for, nowhere else.
    """
    check_target(target, precision)
    folder = bundle.engine_folder(target, precision)
    mend = f"run `{build_command(bundle.path, target, precision)}`"
    build = read_build(folder, mend)
    if (build.target, build.precision) != (target, precision):
        raise LiraError(
            f"{folder} holds engines for {build.target}-{build.precision}, "
            f"expected {target}-{precision}; {mend}"
        )
    mend = f"run `{build_command(bundle.path, target, precision, build.options)}`"
    version = metadata.version("lira-edge")
    if build.lira_edge_version != version:
        raise LiraError(
            f"{folder} was built by lira-edge {build.lira_edge_version}, this is {version}; {mend}"
        )
    if build.lowering != lowering_fingerprint():
        raise LiraError(
            f"{folder} is stale: it was built by lowering code {build.lowering}, this is "
            f"{lowering_fingerprint()}; {mend}"
        )
    if target.startswith("tensorrt"):
        _check_native(build, folder, mend)
    _check_sources(bundle, build, folder, mend)
    _check_complete(bundle, build, folder / BUILD_NAME, mend)
    verify_folder(folder, build.files, mend, verify)
    return build


def _check_sources(bundle: Bundle, build: Build, folder: Path, mend: str) -> None:
    """Raise LiraError where the bundle is not what the engines were built from."""
    for name, digest in build.sources.items():
        listed = bundle.manifest.files.get(name)
        if listed is None or listed.sha256 != digest:
            now = "is no longer there" if listed is None else f"is now {listed.sha256[:12]}"
            raise LiraError(f"{folder} is stale: it was built from {name} {digest[:12]}, which {now}; {mend}")


def _check_complete(bundle: Bundle, build: Build, record: Path, mend: str) -> None:
    """Raise LiraError where a record lacks what a build writes: it was edited."""
    for stage in STAGES:
        for name in bundle.stage_sources(stage):
            if name not in build.sources:
                raise LiraError(f"{record} lists no source {name}; {mend}")
        if engine_file(build.target, stage) not in build.files:
            raise LiraError(f"{record} lists no {engine_file(build.target, stage)}; {mend}")
        found, choices = build.precisions.get(stage), stage_precisions(build.target, build.precision, stage)
        if found not in choices:
            raise LiraError(
                f"{record}: precision of {stage} is {found!r}, expected {' or '.join(choices)}; {mend}"
            )
    try:  # whoever opens engines reads them
        read_options(build.target, build.precision, build.options)
    except LiraError as error:
        raise LiraError(f"{record}: {error}; {mend}") from None


def _check_native(build: Build, folder: Path, mend: str) -> None:
    """Raise LiraError for engines of another TensorRT, system or, where it matters, GPU."""
    from lira_engine.trt.flavour import engine_machine, engine_tools, load_flavour

    for what, found, here in (
        ("was built with", build.tools, engine_tools(build.target)),
        ("was built for", build.machine, engine_machine(build.target)),
    ):
        for key, value in here.items():
            if found.get(key) != value:
                raise LiraError(f"{folder} {what} {key} {found.get(key)}, this is {value}; {mend}")
    dialect, known = build.options.get("dialect"), load_flavour(build.target).dialect
    if dialect != known:
        raise LiraError(f"{folder / BUILD_NAME}: option dialect is {dialect!r}, expected {known}; {mend}")


def engine_file(target: str, stage: str) -> str:
    """The name of a stage's file in an engine folder."""
    return f"{stage}.engine" if target.startswith("tensorrt") else f"{stage}.onnx"


def tool_versions() -> dict[str, str]:
    """The installed packages that take part in a CPU build, with their versions."""
    versions = {"python": platform.python_version()}
    for package in ("onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
