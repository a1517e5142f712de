"""Engine files to runners; an engine whose tensors are not those of the bundle is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from lira_engine.bundle.manifest import Manifest, TensorSpec
from lira_engine.errors import LiraError
from lira_engine.trt.driver import Driver
from lira_engine.trt.engine import EngineTensor, TrtEngine
from lira_engine.trt.flavour import Flavour
from lira_engine.trt.llm import TrtLlm
from lira_engine.trt.profiles import Profile, input_ranges, stage_profiles
from lira_engine.trt.stage import TrtStage

Runner = TypeVar("Runner", TrtStage, TrtLlm)


def open_trt_stage(
    manifest: Manifest, name: str, file: Path, flavour: Flavour, driver: Driver, mend: str
) -> TrtStage:
    """A stage's engine; all but the language model.

    `mend` is what the user does where the engine is of no use here. Raises LiraError where TensorRT or the
    device refuses the file, and where its tensors or profiles are not those of the bundle.
    """
    spec = manifest.stages[name]
    return _open(manifest, name, file, flavour, driver, mend, lambda engine: TrtStage(name, engine, spec))


def open_trt_llm(manifest: Manifest, file: Path, flavour: Flavour, driver: Driver, mend: str) -> TrtLlm:
    """The language model's engine; otherwise as `open_trt_stage`."""
    return _open(manifest, "llm", file, flavour, driver, mend, lambda engine: TrtLlm(engine, manifest.model))


def _open(
    manifest: Manifest,
    name: str,
    file: Path,
    flavour: Flavour,
    driver: Driver,
    mend: str,
    runner: Callable[[TrtEngine], Runner],
) -> Runner:
    with driver.current():
        engine = TrtEngine(file, flavour, driver, mend)
        wrong = next(differences(engine, manifest, name), None)
        if wrong is not None:
            raise LiraError(f"{file} is not an engine of this bundle's {name}: {wrong}; {mend}")
        return runner(engine)


def differences(engine: TrtEngine, manifest: Manifest, stage: str) -> Iterator[str]:
    """What of an engine's tensors and profiles is not as the bundle has them; nothing where all is well."""
    spec = manifest.stages[stage]
    profiles = stage_profiles(manifest, stage, engine.profiles)
    expected = {**spec.inputs, **spec.outputs}
    if engine.tensors.keys() != expected.keys():
        odd = sorted(engine.tensors.keys() ^ expected.keys())
        yield f"tensors {', '.join(odd[:3])} are in one of them only"
        return
    if engine.profiles != len(profiles):
        yield f"it has {engine.profiles} optimization profiles, expected {len(profiles)}"
        return
    for name, tensor in engine.tensors.items():
        if tensor.is_input != (name in spec.inputs):
            yield f"{name} is an {'input' if tensor.is_input else 'output'}"
        if not tensor.on_device:
            yield f"{name} lies in host memory"
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
    if stage == "llm" and engine.flavour.dialect == "cache_update":
        for name in spec.outputs:
            if "_cache_out." in name and engine.aliased_input(name) != name.replace("_cache_out.", "_cache."):
                yield f"{name} does not share the memory of its input"
    # Buffers of one cache have one dtype, whichever way they are used.
    for name in spec.outputs:
        if "_cache_out." in name:
            input_name = name.replace("_cache_out.", "_cache.")
            if engine.tensors[name].dtype != engine.tensors[input_name].dtype:
                yield f"{name} is {engine.tensors[name].dtype}, {input_name} is not"


def _dtypes(name: str, spec: TensorSpec) -> tuple[str, ...]:
    """Engines with fp16 arithmetic have their caches in fp16, too."""
    return (spec.dtype, "float16") if "_cache." in name or "_cache_out." in name else (spec.dtype,)


def _has_shape(tensor: EngineTensor, spec: TensorSpec, profiles: list[Profile]) -> bool:
    """Whether sizes are the same; a named one varies, or is the only one that the profiles have."""
    if len(tensor.shape) != len(spec.shape):
        return False
    for found, expected in zip(tensor.shape, spec.shape, strict=True):
        sizes = {expected}
        if isinstance(expected, str):
            sizes = {size for one in profiles for size in (one[expected].least, one[expected].most)}
            if found == -1:
                continue
        if sizes != {found}:
            return False
    return True


def _text(ranges: tuple[tuple[int, ...], ...]) -> str:
    least, usual, most = (list(shape) for shape in ranges)
    return f"{least} to {most}, usually {usual}"
