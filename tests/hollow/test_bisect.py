"""Where no kernel computes anything, `verify --bisect` names the first node that computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lira_engine.engines.record import read_build
from lira_engine.main import main
from lira_engine.ort.cuts import Cuts

SIZES = ("Shape", "Squeeze")
"""What the stage begins with: arithmetic on sizes, which the CPU does."""


@pytest.mark.parametrize("precision, op", [("fp32", "Conv"), ("fp16", "Cast"), ("int4", "Cast")])
def test_the_first_node_that_computes_is_named(
    built: Callable[[str], Path], precision: str, op: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = built(precision)
    folder = bundle / "engines" / f"cuda-{precision}"
    files = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as caught:
        main(("verify", str(bundle), "--target", "cuda", "--precision", precision, "--bisect"))
    printed = capsys.readouterr()
    assert caught.value.code == 2
    nodes = Cuts(folder / "semantic_encoder.onnx").nodes
    place, first = next((i, node) for i, node in enumerate(nodes, 1) if node.op_type not in SIZES)
    assert first.op_type == op
    found = f"node {op} {first.name} (number {place} of {len(nodes)}, tile 1)"
    assert f"the cuda engine of semantic_encoder is wrong: {found}" in printed.err
    assert "off by 1.0e+00" in printed.err and "pixel_values float32[1, 3, 112, 112] (an input" in printed.err
    assert sorted(folder.iterdir()) == files and read_build(folder, "").verified is None
