"""What a target is: everything that depends on where engines run is asked of one object."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.builder import Progress, StageBuilder
from lira_engine.engines.options import Options
from lira_engine.engines.precision import precision_named
from lira_engine.engines.record import Build
from lira_engine.engines.runner import LlmRunner, StageRunner
from lira_engine.engines.setting import Setting, cpu_setting, gpu_setting
from lira_engine.errors import LiraError, quoted
from lira_engine.system.extras import tool_versions

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class Opener(Protocol):
    """Opens engine files. The runners are context managers."""

    def stage(self, name: str, file: Path) -> StageRunner:
        """A stage; the language model as a plain graph, its whole cache in and out."""
        ...

    def llm(self, file: Path) -> LlmRunner:
        """The language model with its KV cache."""
        ...


@dataclass(frozen=True)
class Readiness:
    """A row of `lira-edge doctor`: "yes", "no" or "build only", and why."""

    target: str
    state: str
    note: str


class Target(ABC):
    """Where engines run. One object per target, in the table of lira_engine.targets.

    Importing a target loads no inference library: what needs one is imported inside the methods.

    Attributes:
        name: as --target takes it. title: one line for people. precisions: names, the default first.
        options: class of its build options. extra: what `pip install 'lira-edge[EXTRA]'` brings to run it.
        runtimes: distributions that execute its engines, the preferred one first. sources: files of the code
            that decides how its engines come out, beside those of all targets (engines.fingerprint).
        suffix: of engine files. on_gpu: engines are not run before they were verified on the GPU that is
        here. runs_at_build: a build runs what it built, with --threads.
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
    runs_at_build: ClassVar[bool] = True

    # Names, precisions, options

    def file(self, stage: str) -> str:
        """The name of a stage's file in an engine folder."""
        return f"{stage}{self.suffix}"

    def check_precision(self, precision: str) -> None:
        """Raise LiraError if the target does not have it."""
        if precision not in self.precisions:
            choices = ", ".join(self.precisions)
            raise LiraError(f"precision {precision!r} is not one that target {self.name} has: {choices}")

    def stage_precisions(self, precision: str, stage: str) -> tuple[str, ...]:
        """The precisions that a stage may have in a build: that of the build; but where only the language
        model's weights are quantized, the other stages are fp16."""
        if stage != "llm" and precision_named(precision).quantized:
            return ("fp16",)
        return (precision,)

    def given_options(self, values: Mapping[str, Any], precision: str) -> Options:
        """The options of a command line. Raises LiraError as `Options.given` does."""
        return self.options.given(values, self.name, precision, self._quantized(precision))

    def recorded_options(self, options: Options, precision: str) -> dict[str, Any]:
        """What build.json says of the options: engines with others are not up to date."""
        return options.recorded(self._quantized(precision))

    def read_options(self, recorded: Mapping[str, Any], precision: str) -> Options:
        """Raises LiraError if `recorded_options` did not write this."""
        return self.options.read(recorded, self._quantized(precision))

    def build_command(self, bundle: Path, precision: str, options: Mapping[str, Any] = NO_OPTIONS) -> str:
        """What the user types to build the engines, with the options of a record."""
        arguments = self.options.arguments(options, self._quantized(precision))
        return f"lira-edge build {quoted(bundle)} --target {self.name} --precision {precision}{arguments}"

    def verify_command(self, bundle: Path, precision: str) -> str:
        """What the user types to verify the engines."""
        return f"lira-edge verify {quoted(bundle)} --target {self.name} --precision {precision}"

    def _quantized(self, precision: str) -> bool:
        return precision_named(precision).quantized

    # Building

    @abstractmethod
    def builder(
        self, bundle: Bundle, precision: str, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        """What builds the stages of a bundle. Raises LiraError if it cannot be built here."""

    def expected_bytes(self, precision: str, portable: Mapping[str, int]) -> int:
        """About how much disk a build needs; `portable`: bytes of the portable files of each stage."""
        return sum(self.expected_engine_bytes(precision, portable).values())

    def expected_engine_bytes(self, precision: str, portable: Mapping[str, int]) -> dict[str, int]:
        """About how large the engine of each stage becomes, at most where its precision is yet to be
        chosen."""
        found = {}
        for stage, size in portable.items():
            choices = self.stage_precisions(precision, stage)
            found[stage] = int(size * max(precision_named(one).disk_share for one in choices))
        return found

    def expected_peak_mib(self, precision: str, portable: Mapping[str, int]) -> int | None:
        """About the peak memory of a build, MiB; None if nobody measured it."""
        return None

    def machine(self) -> dict[str, str]:
        """The kind of machine that engines are built for here."""
        return {"system": platform.system(), "arch": platform.machine()}

    def tools(self) -> dict[str, str]:
        """The packages that take part in a build, with their versions."""
        return tool_versions()

    # Running

    @abstractmethod
    def opener(
        self, bundle: Bundle, precision: str, options: Mapping[str, Any], threads: int | None
    ) -> Opener:
        """What opens engines that were built with the `options` of a record. Raises LiraError if their
        runtime or their device is missing."""

    def setting(self) -> Setting:
        """Of this machine. Raises LiraError if a GPU is needed and there is none."""
        return gpu_setting(self.name, self.runtimes) if self.on_gpu else cpu_setting(self.runtimes)

    def foreign(self, build: Build) -> str | None:
        """Why engines of a record cannot be loaded by what is installed here, or None."""
        return None

    def unfit(self, build: Build, bundle: Path) -> str | None:
        """Why engines that can be loaded do not run on this machine's devices, with the command that mends
        it; or None."""
        return None

    @abstractmethod
    def check_runtime(self) -> None:
        """Raise LiraError if the package that executes engines is missing."""

    @abstractmethod
    def readiness(self) -> Readiness:
        """What `lira-edge doctor` says."""

    def placement(self, bundle: Bundle, build: Build, progress: Callable[[str], None]) -> dict[str, str]:
        """Which execution providers run the nodes of each built stage, where there are several; `progress`
        gets the stage. Raises LiraError if a node runs elsewhere than it should."""
        return {}

    def remarks(self, build: Build) -> list[str]:
        """What the user should know about a build that ended well."""
        return []
