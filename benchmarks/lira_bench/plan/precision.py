"""How an engine of a precision stores and computes a stage: bytes of the weights, peak of the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lira_bench.plan.device import Device, Kind
from lira_bench.plan.efficiency import Work
from lira_bench.plan.graph_costs import Matrix, StageCosts
from lira_bench.plan.polynomial import Dims, Terms, value
from lira_engine.errors import LiraError
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import SMALLEST
from lira_engine.targets import TARGETS

Form = Literal["fp32", "fp16", "int8", "int4", "2xint4", "w8a8", "fp8"]
"""How weights are stored. int8, int4, 2xint4 (eight bits as twice four, in CPU engines): blocks with a scale
each, widened before they are multiplied. w8a8, fp8: with 8-bit activations, a scale per output."""

BLOCKS = (32, 128)
PREFILLS = ("int8", "same")
MIXED, W8A8 = "mixed", "w8a8"
"""Precisions that recipes make: the vision stages in w8a8, and the language model in int4 or w8a8."""

MANY_ROWS = 80
"""Rows from which on a CPU's language model reads its second copy, in 8 bits."""

_VIT = ("semantic_encoder", "sefe")
_IN_8_BITS = (*_VIT, "pixel_encoder")
_FLOATS = ("fp32", "fp16")


@dataclass(frozen=True)
class Group:
    """Weights of a stage that a recipe gives a form of their own. `operations`: of their matmuls."""

    form: Form
    block: int
    matrices: tuple[Matrix, ...]
    operations: Terms


@dataclass(frozen=True)
class StagePrecision:
    """One stage in an engine.

    Attributes:
        matrices: form of the weights of linear layers.
        rest: bytes of every other parameter and of an intermediate value.
        block: inputs that share a scale; 0 for a scale per output.
        many_rows: whether passes of many rows read a second copy of the weights in w8a8, from a memory-mapped
            file. The language model's, in quantized engines for CPUs.
        groups: weights in other forms than `matrices`.
    """

    matrices: Form
    rest: int
    block: int
    many_rows: bool = False
    groups: tuple[Group, ...] = ()

    def weight_bytes(self, costs: StageCosts) -> int:
        """Return the bytes of the weights that an open engine holds."""
        total = costs.other_parameters * self.rest
        for form, block, matrices in self._stored(costs):
            total += sum(one.count * matrix_bytes(form, block, self.rest, one) for one in matrices)
        return total

    def second_copy_bytes(self, costs: StageCosts, vocab_size: int) -> int:
        """Return the bytes of the second copy, without the LM head: on disk and in the page cache."""
        if not self.many_rows:
            return 0
        *groups, rest = self._stored(costs)
        forms = [*(in_copy(form) for form, _, _ in groups), self._rest_in_copy()]
        return sum(
            one.count * matrix_bytes(form, 0, self.rest, one)
            for form, (_, _, matrices) in zip(forms, (*groups, rest), strict=True)
            for one in matrices
            if one.outputs != vocab_size
        )

    def read_bytes(self, costs: StageCosts, dims: Dims, vocab_size: int) -> int:
        """Return the bytes of the weights that one run reads. Passes of many rows, which compute bounds, read
        the LM head, too: it is left out."""
        return self.second_copy_bytes(costs, vocab_size) if self._second(dims) else self.weight_bytes(costs)

    def work(self, stage: str, costs: StageCosts, dims: Dims) -> Iterator[tuple[Work, Form, float]]:
        """Yield the operations of one run: class of work, form of the weights, number."""
        second, rest = self._second(dims), _float(self.rest)
        for kind, count in costs.flops(dims).items():
            if kind != "linear":
                yield _work(stage, kind, rest), rest, count
                continue
            for group in self.groups:
                form = in_copy(group.form) if second else group.form
                done = value(group.operations, dims)
                count -= done
                yield _work(stage, kind, form), form, done
            form = self._rest_in_copy() if second else self.matrices
            yield _work(stage, kind, form), form, max(count, 0.0)

    def text(self) -> str:
        """Return a few words, such as "int4, blocks of 32; w8a8 in passes of many rows"."""
        counts = {self._name(group.form, group.block): len(group.matrices) for group in self.groups}
        shown = ", ".join(counts) + (f", the others {self.matrices}" if counts else "")
        many = f"; w8a8 from {MANY_ROWS} rows on" if self.many_rows else ""
        return (shown or self._name(self.matrices, self.block)) + many

    def _rest_in_copy(self) -> Form:
        """Return the form of the second copy of weights outside groups."""
        return "w8a8" if self.matrices not in _FLOATS else self.matrices

    def _second(self, dims: Dims) -> bool:
        return self.many_rows and dims.get("S", 0) >= MANY_ROWS

    def _name(self, form: Form, block: int) -> str:
        return f"{form}, blocks of {block}" if block else form

    def _stored(self, costs: StageCosts) -> Iterator[tuple[Form, int, list[Matrix]]]:
        """Yield all matrices by form and block."""
        left = Counter({(one.inputs, one.outputs): one.count for one in costs.matrices})
        for group in self.groups:
            for one in group.matrices:
                left[one.inputs, one.outputs] -= one.count
            yield group.form, group.block, list(group.matrices)
        yield self.matrices, self.block, [Matrix(*sizes, count) for sizes, count in left.items()]


def matrix_bytes(form: Form, block: int, rest: int, one: Matrix) -> int:
    """Return the bytes of one of the matrices with its scales; `rest`: bytes of a float."""
    elements = one.inputs * one.outputs
    if form in _FLOATS:
        return elements * (4 if form == "fp32" else 2)
    if form in ("w8a8", "fp8"):
        return elements * rest if min(one.inputs, one.outputs) < SMALLEST else elements + one.outputs * rest
    blocks = one.outputs * -(-one.inputs // block)  # the last one is padded
    if form == "int8":
        return blocks * (block + rest)
    four = blocks * (block // 2 + rest)
    return 2 * four if form == "2xint4" else four


def peak(form: Form, device: Device) -> float:
    """Return a device's peak for matmuls with weights in a form, 10^12 operations a second. Widened weights
    have that of fp16 on GPUs; fp8 that of int8."""
    int4 = device.int4 or device.fp16
    return {
        "fp32": device.fp32,
        "fp16": device.fp16,
        "int8": device.fp16,
        "int4": int4,
        "2xint4": int4 / 2,
        "w8a8": device.int8,
        "fp8": device.int8,
    }[form]


def choices(kind: Kind) -> tuple[str, ...]:
    """Return the precisions of engines for a kind of device."""
    return (*TARGETS["cpu" if kind == "cpu" else "tensorrt"].precisions, MIXED, W8A8)


def check_precision(precision: str, kind: Kind, name: str) -> None:
    """Raise LiraError with the choices for a precision that a device does not have."""
    if precision not in choices(kind):
        found = ", ".join(choices(kind))
        raise LiraError(f"precision {precision!r} is not one that {name} has; expected {found}")


def stage_precision(
    stage: str, precision: str, device: Device, block: int | None = None, second_copy: bool = True
) -> StagePrecision:
    """Return how a build of `precision` stores a stage; `block` None means 32 on CPUs and 128 on GPUs.

    In int8 and int4 builds for CPUs the semantic encoder and SEFE are w8a8, the pixel stages fp32, and the
    language model has a second copy in w8a8, unless `second_copy` is False.
    In those for GPUs all stages but the language model are fp16, and the language model computes in fp16.
    Raises LiraError with the choices for another precision or block.
    """
    check_precision(precision, device.kind, device.name)
    cpu = device.kind == "cpu"
    block = block if block is not None else (32 if cpu else 128)
    if block not in BLOCKS:
        raise LiraError(f"block size {block}; expected 32 or 128")
    rest = 4 if cpu or precision == "fp32" else 2
    floats = StagePrecision(_float(rest), rest, 0)
    eight = StagePrecision("w8a8", rest, 0)
    if precision in _FLOATS:
        return floats
    if stage == "llm":
        if precision == W8A8:
            return replace(eight, many_rows=cpu and second_copy)
        return StagePrecision("2xint4" if precision == "int8" else "int4", rest, block, cpu and second_copy)
    rounded = _IN_8_BITS if precision in (MIXED, W8A8) else _VIT if cpu else ()
    return eight if stage in rounded else floats


def recipe_precisions(
    groups: Mapping[str, tuple[Group, ...]], device: Device, second_copy: bool = True
) -> dict[str, StagePrecision]:
    """Return how an engine from a recipe stores the stages; what the recipe leaves out is a float.

    Raises LiraError for a form that the device does not have.
    """
    cpu = device.kind == "cpu"
    rest = 4 if cpu else 2
    found = {}
    for stage, listed in groups.items():
        for one in listed:
            if one.form == "fp8" and (cpu or device.family == "orin"):
                raise LiraError(f"the recipe has fp8 in {stage}; {device.name} does not compute in it")
        own = tuple(
            Group("2xint4", one.block, one.matrices, one.operations) if cpu and one.form == "int8" else one
            for one in listed
        )
        many = cpu and second_copy and stage == "llm" and bool(own)
        found[stage] = StagePrecision(_float(rest), rest, 0, many, own)
    return found


@dataclass(frozen=True)
class Build:
    """What engines are built with.

    Attributes:
        precision: name. block: inputs that share a scale; None for the device's default.
        prefill: the option of `lira-edge build` for CPUs: a second copy of a quantized language model, in
            w8a8 ("int8"), or none ("same").
        groups: of a recipe, by stage: then it decides in place of `precision`.
    """

    precision: str = "int4"
    block: int | None = None
    prefill: str = "int8"
    groups: Mapping[str, tuple[Group, ...]] | None = None

    def check(self, kind: Kind, name: str) -> None:
        """Raise LiraError with the choices for a precision that a kind of device does not have."""
        check_precision(self.precision, kind, name)

    def stages(self, names: Iterable[str], device: Device) -> dict[str, StagePrecision]:
        """Return how the stages are stored. Raises LiraError for what the device does not have."""
        if self.prefill not in PREFILLS:
            raise LiraError(f"prefill {self.prefill!r}; expected {' or '.join(PREFILLS)}")
        second_copy = self.prefill == PREFILLS[0]
        if self.groups is not None:
            return recipe_precisions(self.groups, device, second_copy)
        return {
            stage: stage_precision(stage, self.precision, device, self.block, second_copy) for stage in names
        }


def work_of_matmul(stage: str, form: Form) -> Work:
    """Return the class of work of a stage's matmul with weights in a form."""
    return _work(stage, "linear", form)


def in_copy(form: Form) -> Form:
    """Return the form that a recipe's weight has in the second copy: 8-bit blocks, there because of rows with
    huge values, are floats."""
    return "w8a8" if form in ("int4", "w8a8") else "fp32"


def _float(width: int) -> Form:
    return "fp32" if width == 4 else "fp16"


def _work(stage: str, kind: str, form: Form) -> Work:
    llm, pixel = stage == "llm", stage.startswith("pixel_")
    if kind == "attention":
        return "prefill attention" if llm else "vit attention"
    if kind in ("conv", "sampling"):
        return "convolution"
    if form in ("int4", "2xint4", "int8"):
        return "int4 prefill"
    if form in ("w8a8", "fp8"):
        return "int8 prefill" if llm else "int8 pixel" if pixel else "int8 vit"
    return "float prefill" if llm else "float pixel" if pixel else "float vit"
