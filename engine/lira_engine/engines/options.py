"""What a build lets choose, per target; and how a record says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from lira_engine.errors import LiraError
from lira_engine.ort.device import PROVIDERS

MOST_LM_HEAD_PARTS = 64
"""A part of a large vocabulary's LM head has a thousand rows then: less saves no memory any more."""


@dataclass(frozen=True)
class OrtOptions:
    """What else decides how engines come out.

    Attributes:
        block_size, lm_head_bits: of the language model's weights, where they are quantized.
        encoders: precision of the other stages in a quantized build: "fp32", "int8", or "auto", which takes
            int8 where its outputs are accepted and it is faster here.
    """

    block_size: int = 32
    lm_head_bits: int = 4
    encoders: Literal["auto", "fp32", "int8"] = "auto"

    def __post_init__(self) -> None:
        if self.block_size not in (32, 128):
            raise LiraError(f"block size {self.block_size}: expected 32 or 128")
        if self.lm_head_bits not in (4, 8):
            raise LiraError(f"LM head of {self.lm_head_bits} bits: expected 4 or 8")
        if self.encoders not in ("auto", "fp32", "int8"):
            raise LiraError(f"encoders {self.encoders!r}: expected auto, fp32 or int8")


@dataclass(frozen=True)
class TrtOptions:
    """What else decides how engines come out.

    Attributes:
        block_size: inputs that share a scale of an int4 weight: 32, 64 or 128. lm_head_bits: in an int4
            build: 4 or 16. lm_head_parts: products that the LM head is split into; more parts need less
            memory at the build.
        compute_capabilities: of the GPUs that engines are for, such as "8.9", kept in order and each once;
            TensorRT for RTX only, where none means its default (8.0 and newer that it knows). TensorRT builds
            for the GPU that is there.
        sampling: how the pixel encoder samples its features: "gathers", or "plugin" for NVIDIA's, which
            TensorRT for RTX does not have.
    """

    block_size: int = 128
    lm_head_bits: int = 4
    lm_head_parts: int = 1
    compute_capabilities: tuple[str, ...] = ()
    sampling: Literal["gathers", "plugin"] = "gathers"

    def __post_init__(self) -> None:
        if self.block_size not in (32, 64, 128):
            raise LiraError(f"block size {self.block_size}: expected 32, 64 or 128")
        if self.lm_head_bits not in (4, 16):
            raise LiraError(f"LM head of {self.lm_head_bits} bits: TensorRT engines have 4 or 16")
        if not 1 <= self.lm_head_parts <= MOST_LM_HEAD_PARTS:
            raise LiraError(f"LM head in {self.lm_head_parts} parts: expected 1 to {MOST_LM_HEAD_PARTS}")
        if self.sampling not in ("gathers", "plugin"):
            raise LiraError(f"sampling {self.sampling!r}: expected gathers or plugin")
        for text in self.compute_capabilities:
            if not re.fullmatch(r"[1-9][0-9]*\.[0-9]", text):
                raise LiraError(f"compute capability {text!r}: expected one such as 8.9")
        ordered = sorted(set(self.compute_capabilities), key=lambda text: tuple(map(int, text.split("."))))
        object.__setattr__(self, "compute_capabilities", tuple(ordered))


@dataclass(frozen=True)
class CudaOptions:
    """What else decides how engines come out.

    Attributes:
        block_size, lm_head_bits: of the language model's weights in an int4 build.
        provider: see `lira_engine.ort.device.PROVIDERS`. allow_fallback: whether nodes may run on the CPU.
    """

    block_size: int = 32
    lm_head_bits: int = 4
    provider: str = "cuda"
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        if self.block_size not in (32, 64, 128):
            raise LiraError(f"block size {self.block_size}: expected 32, 64 or 128")
        if self.lm_head_bits not in (4, 8):
            raise LiraError(f"LM head of {self.lm_head_bits} bits: expected 4 or 8")
        if self.provider not in PROVIDERS:
            raise LiraError(f"provider {self.provider!r}: expected {', '.join(PROVIDERS)}")
        if not isinstance(self.allow_fallback, bool):
            raise LiraError(f"allow_fallback {self.allow_fallback!r}: expected true or false")


Options = OrtOptions | CudaOptions | TrtOptions


_CLASSES: Mapping[str, type[Options]] = MappingProxyType(
    {"cpu": OrtOptions, "cuda": CudaOptions, "tensorrt": TrtOptions, "tensorrt-rtx": TrtOptions}
)


def options_class(target: str) -> type[Options]:
    """Raises LiraError for a target that there is not."""
    if target not in _CLASSES:
        raise LiraError(f"there is no target {target!r}; expected {', '.join(_CLASSES)}")
    return _CLASSES[target]


def options_for(target: str, given: Mapping[str, Any], precision: str | None = None) -> Options:
    """The options of a target's builder, its defaults where nothing is given. Raises LiraError for a target
    that there is not, an option that it does not have, or that decides nothing in `precision`, and for values
    out of range."""
    kind = options_class(target)
    unknown = sorted(given.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise LiraError(f"target {target} has no option {unknown[0].replace('_', ' ')}: leave it out")
    idle = sorted(given.keys() - set(given if precision is None else options_of(target, precision)))
    if idle:
        raise LiraError(
            f"{target}-{precision} engines have no option {idle[0].replace('_', ' ')}: leave it out"
        )
    return kind(**given)


def options_of(target: str, precision: str) -> tuple[str, ...]:
    """The options that decide how engines of a target come out in a precision."""
    weights = ("block_size", "lm_head_bits") if precision in ("int4", "int8") else ()
    match target:
        case "cpu":
            return (*weights, "encoders") if weights else ()
        case "cuda":
            return ("provider", "allow_fallback", *weights)
        case "tensorrt":
            return ("lm_head_parts", "sampling", *weights)
    return ("lm_head_parts", "compute_capabilities", *weights)


def recorded_options(target: str, precision: str, options: Options) -> dict[str, Any]:
    """Those of `options_of`, for JSON."""
    found = {name: getattr(options, name) for name in options_of(target, precision)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def read_options(target: str, precision: str, recorded: Mapping[str, Any]) -> Options:
    """What `recorded_options` wrote, what else there is left out. Raises LiraError where that is not it."""
    given: dict[str, Any] = {}
    for name in options_of(target, precision):
        if name not in recorded:
            raise LiraError(f"lacks option {name}")
        value = recorded[name]
        given[name] = tuple(value) if isinstance(value, list) else value
    try:
        return options_class(target)(**given)
    except TypeError:
        raise LiraError(f"has options of another type: {given}") from None


def option_arguments(target: str, precision: str, recorded: Mapping[str, Any]) -> str:
    """What asks `lira-edge build` for the options of a record that are not the defaults, with a space before
    each; nothing for a record that nobody wrote."""
    try:
        options, usual = read_options(target, precision, recorded), options_class(target)()
    except LiraError:
        return ""
    arguments = ""
    for name in options_of(target, precision):
        value = getattr(options, name)
        if value == getattr(usual, name):
            continue
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        option = "compute-capability" if name == "compute_capabilities" else name.replace("_", "-")
        arguments += f" --{option}" if value is True else f" --{option} {text}"
    return arguments
