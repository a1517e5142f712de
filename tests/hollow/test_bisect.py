"""Where no kernel computes anything, `verify --bisect` names the first node that computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lira_engine.bundle.manifest import STAGES
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


def test_what_computes_wrongly_is_kept_by_force_alone_and_does_not_run(
    fresh_nano: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """From a build that refuses zeros to the node, by the commands that the errors name."""
    bundle = fresh_nano()

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        return error

    asked = (str(bundle), "--target", "cuda", "--precision", "fp16")
    refused = said("build", *asked)
    assert "output features differs" in refused and not list((bundle / "engines").iterdir())
    keep, search = (f"lira-edge {' '.join(line)}" for line in (("build", *asked), ("verify", *asked)))
    assert refused.endswith(f"To find the node: `{keep} --force`, then `{search} --bisect`\n")
    with pytest.raises(SystemExit) as caught:
        main(("build", *asked, "--force"))
    printed = capsys.readouterr()
    assert not caught.value.code and "were kept by --force: the cuda engine of semantic_encoder is wrong" in (
        printed.err
    )
    assert f"wrong: `{search} --bisect` names the node" in printed.out
    record = read_build(bundle / "engines" / "cuda-fp16", "")
    assert list(record.wrong) == list(STAGES) and record.verified is None
    assert "node Cast" in said("verify", *asked, "--bisect")
    assert f"`{search} --bisect` names the node" in said("verify", *asked)
    picture = str(Path(__file__).parents[2] / "assets" / "sample.png")
    assert "were not verified" in said("run", *asked, "--image", picture, "--task", "gcg")
    assert "nothing was kept" in said("build", *asked)  # they are not up to date
