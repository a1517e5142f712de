"""The targets that ONNX Runtime runs: the CPU, NVIDIA GPUs, and portable graphs as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.builder import Progress, StageBuilder
from lira_engine.engines.options import Options
from lira_engine.engines.precision import MIXED, precision_named
from lira_engine.engines.record import Build
from lira_engine.engines.target import NO_OPTIONS, Opener, Readiness, Target
from lira_engine.errors import LiraError
from lira_engine.ort.device import PROVIDERS, cuda_device
from lira_engine.ort.opening import OrtOpener
from lira_engine.ort.options import CpuOptions, CudaOptions
from lira_engine.system.extras import (
    ENGINES_FROM,
    INT8_CACHE_FROM,
    PORTABLE_FROM,
    install_line,
    onnxruntime_here,
)
from lira_engine.system.machine import gpu_here

if TYPE_CHECKING:
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.engines.finding import Finding
    from lira_engine.engines.recipe import Recipe

PEAK_PER_BYTE, PEAK_LEAST_MIB = 2.0, 512
"""Peak memory of a build: bytes per byte of the largest portable stage, and MiB of the libraries."""
PREFILL_SHARE = 0.5
"""Bytes of the graphs for passes of many rows per byte of the portable language model, mostly fp16."""
NOT_BUILT = "target portable runs a bundle's graphs as they are: nothing is built or verified"
_ROOM = Path(__file__).parent


class OrtTarget(Target):
    """A target whose engines are ONNX files."""

    def check_runtime(self) -> None:
        import lira_engine.ort.package  # noqa: F401  raises LiraError if it is missing

    def searcher(
        self, bundle: Bundle, build: Build, threads: int | None, progress: Callable[[str], None]
    ) -> AbstractContextManager[Callable[[str], Finding]]:
        from lira_engine.ort.on_device import OrtOnDevice
        from lira_engine.ort.wrong_node import search_stage

        folder = bundle.engine_folder(self.name, build.precision)
        opener = self.opener(bundle, build.precision, build.settled, threads)
        assert isinstance(opener, OrtOpener)

        def search(stage: str) -> Finding:
            file = folder / self.file(stage)
            device = OrtOnDevice(opener, stage, build.precisions[stage], file)
            return search_stage(bundle, device, threads, progress)

        return nullcontext(search)


class CpuTarget(OrtTarget):
    """Engines for the CPU: graphs with ONNX Runtime's contrib operators, which run on any CPU and any ONNX
    Runtime that is new enough."""

    name = "cpu"
    title = "this machine's processor"
    precisions = ("fp32", "int8", "int4")
    options = CpuOptions
    extra = "cpu"
    runtimes = ("onnxruntime", "onnxruntime-gpu")
    sources = (_ROOM / "build_cpu.py", _ROOM / "options.py", _ROOM / "target.py")
    kinds = ("int4", "int8", "w8a8")

    def stage_precisions(self, precision: str, stage: str) -> tuple[str, ...]:
        """Return the precision of the build; fp32 and int8 for the other stages of a quantized build."""
        if stage != "llm" and self._quantized(precision):
            return ("fp32", "int8")
        return super().stage_precisions(precision, stage)

    def expected_bytes(self, precision: str, portable: Mapping[str, int]) -> int:
        """Return about how many bytes of disk a build needs. A stage that may be fp32 or int8 is written in
        both before the faster one is chosen; the language model also in 8 bits for passes of many rows."""
        if precision == MIXED:
            return super().expected_bytes(precision, portable) + int(portable["llm"] * PREFILL_SHARE)
        shares = {
            stage: sum(precision_named(one).disk_share for one in self.stage_precisions(precision, stage))
            for stage in portable
        }
        shares["llm"] += PREFILL_SHARE if self._quantized(precision) else 0
        return sum(int(size * shares[stage]) for stage, size in portable.items())

    def expected_peak_mib(self, precision: str, portable: Mapping[str, int]) -> int | None:
        """Return about the peak memory of a quantized build, MiB; others were not measured. LIRA-2B's takes
        6,877 MiB (docs/true-size.md), its portable language model has about 3,245."""
        if not self._quantized(precision):
            return None
        return PEAK_LEAST_MIB + int(max(portable.values()) * PEAK_PER_BYTE) // 2**20

    def builder(
        self, bundle: Bundle, precision: str, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        from lira_engine.ort.build_cpu import CpuBuilder

        assert isinstance(options, CpuOptions)
        _check_kv_cache(options.kv_cache)
        return CpuBuilder(OrtOpener(bundle, threads), self, precision, options, progress)

    def recipe_builder(
        self, bundle: Bundle, recipe: Recipe, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        from lira_engine.ort.build_cpu import CpuBuilder

        assert isinstance(options, CpuOptions)
        _check_kv_cache(options.kv_cache)
        return CpuBuilder(OrtOpener(bundle, threads), self, MIXED, options, progress, recipe)

    def opener(
        self, bundle: Bundle, precision: str, options: Mapping[str, Any], threads: int | None
    ) -> OrtOpener:
        _check_kv_cache(options.get("kv_cache"))
        return OrtOpener(bundle, threads)

    def readiness(self) -> Readiness:
        return _runs_from(self.name, ENGINES_FROM, "engines by `lira-edge build`")


class CudaTarget(OrtTarget):
    """Engines for ONNX Runtime's CUDA provider; its TensorRT providers may run all but the language model."""

    name = "cuda"
    title = "an NVIDIA GPU, by ONNX Runtime"
    precisions = ("fp16", "int4", "fp32")
    options = CudaOptions
    extra = "cuda"
    runtimes = ("onnxruntime-gpu", "onnxruntime")
    sources = tuple(_ROOM / f"{name}.py" for name in ("build_cuda", "lowered_reference", "options", "target"))
    on_gpu = True
    kinds = ("int4", "int8", "w8a8", "fp8")

    def builder(
        self, bundle: Bundle, precision: str, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        from lira_engine.ort.build_cuda import CudaBuilder

        assert isinstance(options, CudaOptions)
        opener = OrtOpener(bundle, threads, cuda_device(precision, options.provider, options.allow_fallback))
        return CudaBuilder(opener, self, precision, options, progress)

    def recipe_builder(
        self, bundle: Bundle, recipe: Recipe, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        from lira_engine.ort.build_cuda import CudaBuilder

        assert isinstance(options, CudaOptions)
        opener = OrtOpener(bundle, threads, cuda_device(MIXED, options.provider, options.allow_fallback))
        return CudaBuilder(opener, self, MIXED, options, progress, recipe)

    def opener(
        self, bundle: Bundle, precision: str, options: Mapping[str, Any], threads: int | None
    ) -> OrtOpener:
        device = cuda_device(precision, options["provider"], options["allow_fallback"])
        device = replace(
            device,
            captures=options["step_graph"] == "on",
            fuses_int4=options.get("int4_passes") == "fuse",
        )
        tiles = options["tiles"]
        return OrtOpener(bundle, threads, device, tiles if isinstance(tiles, int) else 1)

    def readiness(self) -> Readiness:
        if not gpu_here():
            return Readiness(self.name, "no", "no NVIDIA GPU found")
        version, providers = onnxruntime_here()
        if version is None:
            return Readiness(self.name, "no", f"needs ONNX Runtime for CUDA: {install_line('cuda')}")
        if "CUDA" not in providers:
            mend = f"pip uninstall -y onnxruntime, then {install_line('cuda')}"
            return Readiness(self.name, "no", f"onnxruntime {version} has no CUDA provider: {mend}")
        chosen = [
            name for name, full in PROVIDERS.items() if full.removesuffix("ExecutionProvider") in providers
        ]
        from lira_engine.ort.gpu_trial import try_gpu

        try:
            try_gpu(cuda_device(self.base))
        except LiraError as error:
            return Readiness(self.name, "no", str(error))
        others = [f"{name} (not tried)" for name in chosen if name != "cuda"]
        return Readiness(self.name, "yes", f"--provider {', '.join(['cuda', *others])}")

    def placement(self, bundle: Bundle, build: Build, progress: Callable[[str], None]) -> dict[str, str]:
        from lira_engine.ort.build_cuda import checked_placement

        folder = bundle.engine_folder(self.name, build.precision)
        device = cuda_device(build.precision, build.options["provider"], build.options["allow_fallback"])
        found = {}
        for stage in STAGES:
            progress(stage)
            file, precision = folder / self.file(stage), build.precisions[stage]
            found[stage] = checked_placement(bundle, stage, file, precision, device).text()
        return found


class PortableTarget(OrtTarget):
    """A bundle's graphs as `export` wrote them. Nothing is built or verified."""

    name = "portable"
    title = "the bundle's graphs as they are, on the CPU"
    precisions = ("fp32",)
    extra = "cpu"
    runtimes = CpuTarget.runtimes
    sources = ()

    def check_precision(self, precision: str) -> None:
        if precision not in self.precisions:
            raise LiraError(f"the portable graphs have precision fp32, not {precision!r}")

    def builder(
        self, bundle: Bundle, precision: str, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        raise LiraError(NOT_BUILT)

    def opener(
        self,
        bundle: Bundle,
        precision: str,
        options: Mapping[str, Any] = NO_OPTIONS,
        threads: int | None = None,
    ) -> Opener:
        return OrtOpener(bundle, threads)

    def readiness(self) -> Readiness:
        return _runs_from(self.name, PORTABLE_FROM, "graphs as exported")


def _check_kv_cache(kind: str | None) -> None:
    """Raises LiraError if this ONNX Runtime cannot run a KV cache of this kind. It would open the engine."""
    version, _ = onnxruntime_here()
    if kind == "int8" and version is not None and _release(version) < INT8_CACHE_FROM:
        expected = ".".join(map(str, INT8_CACHE_FROM))
        raise LiraError(
            f"an int8 KV cache needs onnxruntime {expected} or newer, found {version}: update it, or build "
            "without --kv-cache int8"
        )


def _runs_from(target: str, least: tuple[int, ...], note: str) -> Readiness:
    """Return "yes", with `note`, if the installed ONNX Runtime has version `least` or newer."""
    version, _ = onnxruntime_here()
    if version is None:
        return Readiness(target, "no", f"needs ONNX Runtime: {install_line('cpu')}")
    if _release(version) < least:
        expected = ".".join(map(str, least))
        return Readiness(target, "no", f"needs onnxruntime {expected} or newer, found {version}")
    return Readiness(target, "yes", note)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
