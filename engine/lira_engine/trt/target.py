"""The targets of TensorRT and TensorRT for RTX."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lira_engine.cuda.driver import DriverName, check_driver
from lira_engine.cuda.opening import missing_package, open_driver
from lira_engine.engines.builder import Progress, StageBuilder
from lira_engine.engines.options import Options
from lira_engine.engines.precision import MIXED
from lira_engine.engines.record import Build, differing
from lira_engine.engines.target import Opener, Readiness, Target
from lira_engine.errors import LiraError, quoted
from lira_engine.system.machine import gpus, jetson
from lira_engine.trt import readiness
from lira_engine.trt.flavour import (
    PACKAGES,
    RTX_ALL_PRECISIONS_FROM,
    RTX_BUILDS_FOR,
    RTX_CAPABILITIES,
    load_flavour,
    parse_version,
)
from lira_engine.trt.options import RtxOptions, TensorRtOptions

if TYPE_CHECKING:
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.engines.finding import Finding
    from lira_engine.engines.recipe import Recipe

KERNEL_BYTES = 16 << 20
"""An engine's kernels beside its weights: those of lira-nano take 2 to 15 MiB, for one GPU or for four."""
_ROOM = Path(__file__).parent
_SOURCES = tuple(
    _ROOM / f"{name}.py"
    for name in ("build", "compile", "flavour", "options", "plugins", "profiles", "target")
)
_ARCH = {"AMD64": "x86_64"}
"""By Windows' name of a processor, the name on other systems."""


class NativeTarget(Target):
    """What both targets share. Engines load only with the version that built them, on the kind of machine
    that they were built for."""

    precisions = ("fp16", "int4", "fp32")
    sources = (*_SOURCES, _ROOM.parent / "ort" / "lowered_reference.py")
    suffix = ".engine"
    on_gpu = True
    engines_are_code = True
    takes_driver = True
    runs_at_build = False
    kinds = ("int4", "int8", "w8a8", "fp8")
    driver: DriverName = "auto"

    def with_driver(self, driver: DriverName) -> NativeTarget:
        chosen = copy(self)
        chosen.driver = check_driver(driver)
        return chosen

    def recorded_options(self, options: Options, precision: str) -> dict[str, Any]:
        """Return what build.json says, with the dialect of the parser that read the graphs."""
        dialect = load_flavour(self.name).dialect
        return {"dialect": dialect, **super().recorded_options(options, precision)}

    def read_options(self, recorded: Mapping[str, Any], precision: str) -> Options:
        dialect, known = recorded.get("dialect"), load_flavour(self.name).dialect
        if dialect != known:
            raise LiraError(f"option dialect is {dialect!r}, expected {known}")
        return super().read_options(recorded, precision)

    def builder(
        self, bundle: Bundle, precision: str, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        from lira_engine.trt.build import TrtBuilder

        assert isinstance(options, (TensorRtOptions, RtxOptions))
        return TrtBuilder(bundle, self, load_flavour(self.name), precision, options, progress)

    def recipe_builder(
        self, bundle: Bundle, recipe: Recipe, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        from lira_engine.trt.build import TrtBuilder

        assert isinstance(options, (TensorRtOptions, RtxOptions))
        return TrtBuilder(bundle, self, load_flavour(self.name), MIXED, options, progress, recipe)

    def expected_bytes(self, precision: str, portable: Mapping[str, int]) -> int:
        """Return the bytes of the engines, their kernels and the largest lowered graph; with a recipe of all
        graphs, which are judged together."""
        sizes = self.expected_engine_bytes(precision, portable).values()
        graphs = sum(sizes) if precision == MIXED else max(sizes)
        return sum(sizes) + graphs + KERNEL_BYTES * len(sizes)

    def expected_peak_mib(self, precision: str, portable: Mapping[str, int]) -> int:
        from lira_engine.trt.build import peak_mib

        return peak_mib(max(self.expected_engine_bytes(precision, portable).values()))

    def tools(self) -> dict[str, str]:
        """Return the package that engines depend on: another version does not load them."""
        return {self.name: ".".join(map(str, load_flavour(self.name).version))}

    def foreign(self, build: Build) -> str | None:
        odd = differing("was built with", build.tools, self.tools())
        return odd or differing("was built for", build.machine, self.machine())

    def opener(
        self, bundle: Bundle, precision: str, options: Mapping[str, Any], threads: int | None
    ) -> Opener:
        from lira_engine.trt.opening import TrtOpener
        from lira_engine.trt.plugins import load_plugins

        flavour, driver = load_flavour(self.name), open_driver(self.driver)
        # Without the build's options: another GPU may need other ones.
        mend = f"run `{self.build_command(bundle.path, precision)} --force` on this machine"
        if options.get("sampling") == "plugin":
            load_plugins(flavour, mend)
        return TrtOpener(bundle.manifest, flavour, driver, mend)

    def searcher(
        self, bundle: Bundle, build: Build, threads: int | None, progress: Callable[[str], None]
    ) -> AbstractContextManager[Callable[[str], Finding]]:
        from lira_engine.trt.on_device import open_searcher

        return open_searcher(self, bundle, build, threads, progress)

    def check_runtime(self) -> None:
        lacking = missing_package(self.driver)
        if lacking is not None:
            raise LiraError(f"target {self.name}: {lacking}")

    def remarks(self, build: Build) -> list[str]:
        from lira_engine.engines import lowered_outputs

        rounded = [stage for stage, one in build.precisions.items() if one == MIXED or self._quantized(one)]
        lacking = [stage for stage in rounded if lowered_outputs.file_name(stage) not in build.files]
        if not lacking:
            return []
        with_what = "with the fp32 outputs only, which int4 misses by far"
        if build.precision == MIXED:
            with_what = "with nothing: it only looks for values that are not finite"
        return [
            f"built without an ONNX Runtime that computes the lowered {', '.join(map(_title, lacking))}: "
            f"verify will compare {', '.join(lacking)} {with_what}. Install one, and build with --force"
        ]


def _title(stage: str) -> str:
    return "language model" if stage == "llm" else stage


class TensorRtTarget(NativeTarget):
    """TensorRT: engines run on the GPU model that they were built on; on a Jetson, with the same L4T."""

    name = "tensorrt"
    title = "an NVIDIA GPU, by TensorRT (Jetson, data centre)"
    options = TensorRtOptions
    extra = PACKAGES[name].extra
    runtimes = ("tensorrt",)

    def machine(self) -> dict[str, str]:
        here = {"system": platform.system(), "arch": _arch()}
        board = jetson()
        if board is not None:  # nvidia-smi gives the GPUs of all boards one name
            return here | {"gpu": board.model, "l4t": board.l4t}
        return here | {"gpu": ", ".join(sorted({gpu.name for gpu in gpus()})) or "none found"}

    def readiness(self) -> Readiness:
        return readiness.tensorrt_readiness()


class RtxTarget(NativeTarget):
    """TensorRT for RTX: engines run on any GPU of their compute capabilities, on Linux and Windows alike, as
    NVIDIA says (developer.nvidia.com/tensorrt-rtx: portable across GPUs and OS)."""

    name = "tensorrt-rtx"
    title = "an NVIDIA RTX GPU, by TensorRT for RTX"
    options = RtxOptions
    extra = PACKAGES[name].extra
    runtimes = ("tensorrt-rtx",)

    def machine(self) -> dict[str, str]:
        return {"arch": _arch()}

    def readiness(self) -> Readiness:
        return readiness.rtx_readiness()

    def unfit(self, build: Build, bundle: Path) -> str | None:
        """Return that no GPU here has a compute capability that the engines were built for, or None."""
        cards = [gpu for gpu in gpus() if gpu.compute_capability]
        built_for = tuple(build.options.get("compute_capabilities", ())) or RTX_CAPABILITIES
        if not cards or any(gpu.compute_capability in built_for for gpu in cards):
            return None
        found = cards[0].compute_capability or ""
        what = f"for compute capability {', '.join(built_for)}, {cards[0].name} has {found}"
        if found not in RTX_BUILDS_FOR:
            other = f"lira-edge build {quoted(bundle)} --target cuda --precision fp16"
            return f"{what}, which TensorRT for RTX does not build for: run `{other}`"
        precision = build.precision if parse_version(found) >= RTX_ALL_PRECISIONS_FROM else "fp16"
        options = {**build.options, "compute_capabilities": [found]}
        return f"{what}: run `{self.build_command(bundle, precision, options)}`"


def _arch() -> str:
    return _ARCH.get(platform.machine(), platform.machine())
