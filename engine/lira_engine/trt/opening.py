"""Open engine files as runners; refuse an engine whose tensors differ from the bundle's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from lira_engine.bundle.manifest import Manifest, TensorSpec
from lira_engine.cuda.driver import Driver
from lira_engine.engines.llm_tensors import cache_output, is_cache, is_cache_input
from lira_engine.errors import LiraError
from lira_engine.trt.engine import EngineTensor, TrtEngine
from lira_engine.trt.flavour import Flavour
from lira_engine.trt.llm import TrtLlm
from lira_engine.trt.profiles import Profile, input_ranges, stage_profiles
from lira_engine.trt.stage import TrtStage

Runner = TypeVar("Runner", TrtStage, TrtLlm)


@dataclass(frozen=True)
class TrtOpener:
    """Opens engines on the GPU; all engines of a process share one CUDA context.

    `mend`: what the user does if an engine does not work here. Both methods raise LiraError if TensorRT or
    the device refuses the file, or if its tensors or profiles differ from the bundle's.
    """

    manifest: Manifest
    flavour: Flavour
    driver: Driver
    mend: str
    # Decode steps of one row have a profile and a captured graph. 2 to 4 rows would run by the kernels that
    # were tuned for a prefill's 256.
    draft_costs: ClassVar[tuple[float, ...]] = ()
    tiles_at_once: ClassVar[int] = 1
    maps_files: ClassVar[bool] = False  # plans are on the device

    @property
    def cuda_calls(self) -> str:
        return self.driver.name

    def stage(self, name: str, file: Path) -> TrtStage:
        """Open the engine of any stage but the language model."""
        spec = self.manifest.stages[name]
        return self._open(name, file, lambda engine: TrtStage(name, engine, spec))

    def llm(self, file: Path) -> TrtLlm:
        return self._open("llm", file, lambda engine: TrtLlm(engine, self.manifest.model))

    def _open(self, name: str, file: Path, runner: Callable[[TrtEngine], Runner]) -> Runner:
        with self.driver.current():
            engine = TrtEngine(file, self.flavour, self.driver, self.mend)
            wrong = next(differences(engine, self.manifest, name), None)
            if wrong is not None:
                raise LiraError(f"{file} is not an engine of this bundle's {name}: {wrong}; {self.mend}")
            return runner(engine)


def differences(engine: TrtEngine, manifest: Manifest, stage: str) -> Iterator[str]:
    """Yield how an engine's tensors and profiles differ from the bundle's."""
    spec = manifest.stages[stage]
    profiles = stage_profiles(manifest, stage, engine.profiles)
    expected = {**spec.inputs, **spec.outputs}
    if engine.tensors.keys() != expected.keys():
        odd = sorted(engine.tensors.keys() ^ expected.keys())
        yield f"tensors {', '.join(odd[:3])} are in the engine or in the bundle only"
        return
    if engine.profiles != len(profiles):
        yield f"it has {engine.profiles} optimization profiles, expected {len(profiles)}"
        return
    for name, tensor in engine.tensors.items():
        if tensor.is_input != (name in spec.inputs):
            yield f"{name} is an {'input' if tensor.is_input else 'output'}"
        if not tensor.on_device:
            yield f"{name} is in host memory, expected on the device"
        dtypes = _dtypes(name, expected[name])
        if tensor.dtype not in dtypes:
            yield f"{name} is {tensor.dtype}, expected {' or '.join(dtypes)}"
        if not _has_shape(tensor, expected[name], profiles):
            yield f"{name} is {list(tensor.shape)}, expected {list(expected[name].shape)}"
    for number, profile in enumerate(profiles):
        for name, ranges in input_ranges(spec, profile).items():
            found = engine.tensors[name].ranges[number]
            if found != ranges:
                yield f"{name} takes {_text(found)}, in profile {number}, expected {_text(ranges)}"
    for given in filter(is_cache_input, spec.inputs):
        updated = cache_output(given)
        if engine.flavour.dialect == "cache_update" and engine.aliased_input(updated) != given:
            yield f"{updated} does not share the memory of its input"
        # A pass may read a buffer that another one wrote: both have one dtype.
        if engine.tensors[updated].dtype != engine.tensors[given].dtype:
            yield f"{updated} is {engine.tensors[updated].dtype}, {given} is not"


def _dtypes(name: str, spec: TensorSpec) -> tuple[str, ...]:
    """Return the dtypes that a tensor may have: engines in fp16 keep their caches in fp16, too."""
    return (spec.dtype, "float16") if is_cache(name) else (spec.dtype,)


def _has_shape(tensor: EngineTensor, spec: TensorSpec, profiles: list[Profile]) -> bool:
    """Return whether the sizes agree; a named one is dynamic, or the only one that the profiles have."""
    if len(tensor.shape) != len(spec.shape):
        return False
    for found, expected in zip(tensor.shape, spec.shape, strict=True):
        sizes = {expected}
        if isinstance(expected, str):
            sizes = {size for one in profiles for size in (one[expected].min, one[expected].max)}
            if found == -1:
                continue
        if sizes != {found}:
            return False
    return True


def _text(ranges: tuple[tuple[int, ...], ...]) -> str:
    least, opt, most = (list(shape) for shape in ranges)
    return f"{least} to {most}, opt {opt}"
