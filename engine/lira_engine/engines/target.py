"""The contract of a target: one object answers everything that depends on where engines run."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lira_engine.cuda.driver import DriverName, check_driver
from lira_engine.engines.builder import Progress, StageBuilder
from lira_engine.engines.options import Options, Weights
from lira_engine.engines.precision import MIXED, precision_named
from lira_engine.engines.record import Build
from lira_engine.engines.setting import Setting, cpu_setting, gpu_setting
from lira_engine.errors import LiraError, quoted
from lira_engine.system.extras import tool_versions

if TYPE_CHECKING:
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.engines.finding import Finding
    from lira_engine.engines.recipe import Recipe, StageRecipe
    from lira_engine.engines.runner import LlmRunner, StageRunner

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class Opener(Protocol):
    """Opens engine files. The runners are context managers.

    `draft_costs`: those of its quantized language models. `cuda_calls`, `tiles_at_once`: see `Engines`.
    `maps_files`: whether open engines go on reading files beside their graphs (bundle.unchanged).
    """

    @property
    def maps_files(self) -> bool: ...

    @property
    def cuda_calls(self) -> str: ...

    @property
    def draft_costs(self) -> tuple[float, ...]: ...

    @property
    def tiles_at_once(self) -> int: ...

    def stage(self, name: str, file: Path) -> StageRunner:
        """Open a stage; the language model as a plain graph with its caches as inputs and outputs."""
        ...

    def llm(self, file: Path) -> LlmRunner:
        """Open the language model with its KV cache."""
        ...


@dataclass(frozen=True)
class Readiness:
    """A row of `lira-edge doctor`. `state`: "yes", "no" or "build only"; `note`: the reason."""

    target: str
    state: str
    note: str


class Target(ABC):
    """A place where engines run. One object per target, in the table of lira_engine.targets.

    Importing a target loads no inference library: its methods import modules that need one.

    Attributes:
        name: value of --target. title: one line for people. precisions: names, the default first.
        options: class of its build options. extra: of `pip install 'lira-edge[EXTRA]'`, to run its engines.
        runtimes: distributions that execute its engines, the preferred one first. sources: files of code that
            decides what is in its engines, beside that of all targets (engines.fingerprint).
        suffix: of engine files. on_gpu: engines must be verified on this machine's GPU before they run.
        engines_are_code: loading an engine runs what is in it.
        takes_driver: a driver that users choose makes CUDA's calls (`with_driver`).
        runs_at_build: a build runs its engines, with --threads.
        kinds: forms of weights that it lowers (engines.recipe); () if it takes no recipe.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    options: ClassVar[type[Options]] = Options
    extra: ClassVar[str]
    runtimes: ClassVar[tuple[str, ...]]
    sources: ClassVar[tuple[Path, ...]]
    suffix: ClassVar[str] = ".onnx"
    on_gpu: ClassVar[bool] = False
    engines_are_code: ClassVar[bool] = False
    takes_driver: ClassVar[bool] = False
    runs_at_build: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ()

    # Names, precisions, options

    def file(self, stage: str) -> str:
        """Return the name of a stage's file in an engine folder."""
        return f"{stage}{self.suffix}"

    def check_precision(self, precision: str) -> None:
        """Raises LiraError if the target does not have the precision."""
        if precision == MIXED and not self.kinds:
            raise LiraError(f"target {self.name} takes no recipe; expected {', '.join(self.precisions)}")
        if precision not in (*self.precisions, MIXED):
            choices = ", ".join(
                (*self.precisions, f"{MIXED} (with a recipe)") if self.kinds else self.precisions
            )
            raise LiraError(f"target {self.name} has no precision {precision!r}; expected {choices}")

    @property
    def base(self) -> str:
        """Precision of what a recipe leaves alone."""
        return self.precisions[0]

    def stage_precision(self, precision: str, stage: str, part: StageRecipe | None = None) -> str:
        """Return the precision of a stage in a build whose recipe has `part` for it. Raises ValueError if the
        build itself decides between several."""
        if precision == MIXED:
            return MIXED if part else self.base
        (found,) = self.stage_precisions(precision, stage)
        return found

    def stage_precisions(self, precision: str, stage: str) -> tuple[str, ...]:
        """Return the precisions that a stage may have in a build: that of the build; fp16 for the other
        stages if only the language model's weights are quantized; `base` for those that a recipe leaves
        alone."""
        if precision == MIXED:
            return (MIXED, self.base)
        if stage != "llm" and precision_named(precision).quantized:
            return ("fp16",)
        return (precision,)

    def given_options(self, values: Mapping[str, Any], precision: str) -> Options:
        """Return the options that a command line sets. Raises LiraError as `Options.given` does."""
        return self.options.given(values, self.name, precision, self._weights(precision))

    def recorded_options(self, options: Options, precision: str) -> dict[str, Any]:
        """Return the options for build.json: engines with other options are not up to date."""
        return options.recorded(self._weights(precision))

    def read_options(self, recorded: Mapping[str, Any], precision: str) -> Options:
        """Return the options of a record. Raises LiraError if `recorded_options` did not write it."""
        return self.options.read(recorded, self._weights(precision))

    def build_command(self, bundle: Path, precision: str, options: Mapping[str, Any] = NO_OPTIONS) -> str:
        """Return the command that builds the engines, with the options of a record."""
        arguments = self.options.arguments(options, self._weights(precision))
        how = "--recipe RECIPE" if precision == MIXED else f"--precision {precision}"
        return f"lira-edge build {quoted(bundle)} --target {self.name} {how}{arguments}"

    def verify_command(self, bundle: Path, precision: str) -> str:
        """Return the command that verifies the engines."""
        return f"lira-edge verify {quoted(bundle)} --target {self.name} --precision {precision}"

    def _weights(self, precision: str) -> Weights:
        if precision == MIXED:
            return "mixed"
        return "quantized" if self._quantized(precision) else "float"

    def _quantized(self, precision: str) -> bool:
        return precision_named(precision).quantized

    # Building

    @abstractmethod
    def builder(
        self, bundle: Bundle, precision: str, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        """Return the builder of a bundle's stages. Raises LiraError if they cannot be built here."""

    def recipe_builder(
        self, bundle: Bundle, recipe: Recipe, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        """Return the builder of stages with a recipe, which fits the bundle and the target. Raises LiraError
        if they cannot be built here."""
        raise NotImplementedError(f"target {self.name} has `kinds` and no `recipe_builder`")

    def expected_bytes(self, precision: str, portable: Mapping[str, int]) -> int:
        """Return about how many bytes of disk a build needs; `portable`: bytes of each stage's portable
        files."""
        return sum(self.expected_engine_bytes(precision, portable).values())

    def expected_engine_bytes(self, precision: str, portable: Mapping[str, int]) -> dict[str, int]:
        """Return about how many bytes the engine of each stage takes, at the largest of the precisions that
        it may have."""
        found = {}
        for stage, size in portable.items():
            choices = self.stage_precisions(precision, stage)
            found[stage] = int(size * max(precision_named(one).disk_share for one in choices))
        return found

    def expected_peak_mib(self, precision: str, portable: Mapping[str, int]) -> int | None:
        """Return about the peak memory of a build, MiB; None if it was not measured."""
        return None

    def machine(self) -> dict[str, str]:
        """Return the kind of machine that a build here is for."""
        return {"system": platform.system(), "arch": platform.machine()}

    def tools(self) -> dict[str, str]:
        """Return the packages that take part in a build, with their versions."""
        return tool_versions()

    # Running

    @abstractmethod
    def opener(
        self, bundle: Bundle, precision: str, options: Mapping[str, Any], threads: int | None
    ) -> Opener:
        """Return the opener of engines that were built with `options`: those that a record says are
        `settled`. Raises LiraError if their runtime or device is missing."""

    def with_driver(self, driver: DriverName) -> Target:
        """Return this target with its CUDA calls made by `driver`. Raises LiraError where the inference
        library makes them all."""
        if check_driver(driver) != "auto":
            own = f"{self.runtimes[0]} needs none"
            raise LiraError(f"target {self.name} takes no driver, {own}: leave --driver out")
        return self

    def setting(self) -> Setting:
        """Return this machine's setting. Raises LiraError if the target needs a GPU and there is none."""
        return gpu_setting(self.name, self.runtimes) if self.on_gpu else cpu_setting(self.runtimes)

    def foreign(self, build: Build) -> str | None:
        """Return why the packages installed here cannot load the engines of a record, or None."""
        return None

    def unfit(self, build: Build, bundle: Path) -> str | None:
        """Return why loadable engines do not run on this machine's devices, with the command that builds
        those that do; or None."""
        return None

    @abstractmethod
    def check_runtime(self) -> None:
        """Raises LiraError if the package that executes engines is missing."""

    @abstractmethod
    def readiness(self) -> Readiness:
        """Return the target's row of `lira-edge doctor`."""

    def placement(self, bundle: Bundle, build: Build, progress: Callable[[str], None]) -> dict[str, str]:
        """Return which execution providers run the nodes of each built stage, if there are several;
        `progress` gets the stage. Raises LiraError if a node runs on a provider that it must not run on."""
        return {}

    def searcher(
        self, bundle: Bundle, build: Build, threads: int | None, progress: Callable[[str], None]
    ) -> AbstractContextManager[Callable[[str], Finding]]:
        """Return what compares a built stage on the device with its lowered graph on the CPU, and finds its
        first wrong node. Raises LiraError if the runtime or the device is missing, or the lowered graphs
        cannot be had."""
        raise LiraError(f"target {self.name} has no --bisect: leave it out")

    def remarks(self, build: Build) -> list[str]:
        """Return notes to the user about a build that succeeded."""
        return list(build.said)
