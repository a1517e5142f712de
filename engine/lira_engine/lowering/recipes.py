"""What a recipe says of a stage, as the passes ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from lira_engine.engines.llm_tensors import LM_HEAD
from lira_engine.engines.recipe import BLOCKS, MEND, Form, StageRecipe
from lira_engine.errors import LiraError
from lira_engine.lowering.int4_blocks import Blocks, WeightBits, quantize_positive, rounded_by
from lira_engine.lowering.passes.pad_inputs import PadInputs
from lira_engine.lowering.passes.quantize_operands import QuantizeOperands, Range
from lira_engine.lowering.passes.quantize_weights import QuantizeWeights
from lira_engine.lowering.passes.require_matmuls import RequireMatMuls
from lira_engine.lowering.passes.scale_channels import ChannelScale, ScaleChannels
from lira_engine.lowering.pipeline import Pass
from lira_engine.lowering.weights import ConstantMatMul

_NEAREST = rounded_by(quantize_positive)


@dataclass(frozen=True)
class Forms:
    """The forms of a stage's weights.

    Attributes:
        parts: of the LM head, which `SplitLmHead` names NAME.0, NAME.1 and so on.
    """

    recipe: StageRecipe
    parts: int = 1

    def check(self, stage: str, target: str, kinds: Sequence[str], blocks: Sequence[int] = BLOCKS) -> None:
        """Raise LiraError for the first form whose kind or block `target` lacks; it lists those that it
        has."""
        for name, form in self.recipe.forms.items():
            known = form.kind in kinds
            if known and form.block in (None, *blocks):
                continue
            found, has = (f"blocks of {form.block}", sorted(blocks)) if known else (form.kind, kinds)
            raise LiraError(
                f"the recipe stores {name} of {stage} in {form.text()}: {target} has no {found}, expected "
                f"{', '.join(map(str, has))}; {MEND}"
            )

    def first_passes(self) -> Sequence[Pass]:
        """Return the passes that come first: forms are those of the scaled weights."""
        scales = [
            ChannelScale(one.divided, one.multiplied, partial(self.recipe.smoothing_scale, one))
            for one in self.recipe.smoothing
        ]
        return RequireMatMuls(self.recipe.forms), ScaleChannels(scales)

    def bits(self, name: str, inputs: int = 0) -> WeightBits | None:
        """Return how a weight is stored whose form rounds it alone; None for others."""
        form = self._form(name)
        if form is None or form.block is None:
            return None
        return WeightBits(4 if form.kind == "int4" else 8, form.block)

    def block(self, name: str) -> int | None:
        """Return the block of such a weight."""
        stored = self.bits(name)
        return stored.block if stored is not None else None

    def digit(self, name: str, stored: ir.TensorProtocol, block: int, digit: int) -> Blocks:
        """Return the first four bits of such a weight [K, N], or the second: those of its rounding error.

        The recipe's codes, if it brings them; raises LiraError if they are of another shape.
        """
        whole, part = self._whole(name)
        codes = self.recipe.codes(whole) if self.recipe.forms[whole].kind == "int4" else None
        if codes is None:
            return _NEAREST(name, stored, block, digit)
        packed, scales = codes
        if name != whole:
            start, stop = (len(scales) * edge // self.parts for edge in (part, part + 1))
            packed, scales = packed[start:stop], scales[start:stop]
        inputs, outputs = (int(size) for size in stored.shape)  # type: ignore[arg-type]
        shape = (outputs, -(-inputs // block))
        if scales.shape != shape or packed.shape != (*shape, block // 2):
            raise LiraError(
                f"the recipe's codes of {name} are {list(packed.shape)} with scales {list(scales.shape)}, "
                f"expected {[*shape, block // 2]} and {list(shape)}: {MEND}"
            )
        return Blocks(packed, scales)

    def range_of(self, kind: str, dynamic: bool | None = None) -> Range:
        """Return the ranges of the inputs of matmuls whose weights have a form of `kind` and, unless it is
        None, `dynamic`."""

        def range_of(name: str) -> tuple[float, float] | None:
            form = self._form(name)
            if form is None or form.kind != kind or form.range is None or dynamic not in (None, form.dynamic):
                return None
            low, high = form.range
            return low, high

        return range_of

    def is_dynamic(self, matmul: ConstantMatMul) -> bool:
        """Return whether the range of a matmul's input is measured in each run."""
        form = self._form(matmul.name)
        return form is not None and form.kind == "w8a8" and form.dynamic

    def _form(self, name: str) -> Form | None:
        return self.recipe.forms.get(self._whole(name)[0])

    def _whole(self, name: str) -> tuple[str, int]:
        """Return the weight that `name` is, or is a part of, and which part."""
        head, _, part = name.rpartition(".")
        if self.parts > 1 and head == LM_HEAD and part.isdigit():
            return head, int(part)
        return name, 0


def standard_weights(forms: Forms) -> Sequence[Pass]:
    """Return the passes that round weights alone, in standard operators."""
    return PadInputs(forms.block), QuantizeWeights(forms.bits, forms.digit)


def operands(forms: Forms) -> Sequence[Pass]:
    """Return the passes that round both operands, in standard operators, for GPUs."""
    return (
        QuantizeOperands("int8", forms.range_of("w8a8")),
        QuantizeOperands("fp8", forms.range_of("fp8")),
    )
