"""What the pipelines of all targets share."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from lira_engine import LiraError
from lira_engine.lowering.passes.downgrade_opset import DowngradeOpset
from lira_engine.lowering.pipeline import Pass, apply


class Broken(ir.passes.InPlacePass):
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, False)

    def ensures(self, model: ir.Model) -> None:
        raise ir.passes.PostconditionError("an Einsum is left")


@pytest.mark.parametrize(
    "broken, reason",
    [(DowngradeOpset(20, ir_version=10), "DowngradeOpset cannot lower"), (Broken(), "an Einsum is left")],
)
def test_a_broken_contract_is_one_line_that_names_the_pass(
    broken: Pass, reason: str, made_bundle: Path
) -> None:
    with pytest.raises(LiraError, match=reason) as caught:
        apply(ir.load(made_bundle / "llm.onnx"), [broken])
    said = str(caught.value)
    assert said.startswith(f"{type(broken).__name__} cannot lower ") and "\n" not in said
    assert "; export the bundle again" in said
