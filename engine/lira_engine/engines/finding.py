"""What `lira-edge verify --bisect` found in a stage: the first node that a device computes wrongly."""

from __future__ import annotations

from dataclasses import dataclass

from lira_engine.errors import LiraError

REPORT = "report this with the output of `lira-edge doctor`"


@dataclass(frozen=True)
class ValueFact:
    """A tensor of a node. `error`: in accepted errors (engines.beside_reference); None for an input
    of the stage itself."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    error: float | None = None

    def text(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"

    def error_text(self, limit: float) -> str:
        """Return how far it is off. `limit`: the accepted error."""
        if self.error is None:
            return "an input of the stage"
        if self.error == float("inf"):
            return "not finite, or of other integers than the reference"
        return f"off by {self.error * limit:.1e}"


@dataclass(frozen=True)
class NodeFact:
    """A node of a lowered graph. `portable`: its name in the bundle's graph; "" if the lowering made it."""

    op: str
    name: str
    portable: str = ""

    def text(self) -> str:
        return f"{self.op} {self.name}"


@dataclass(frozen=True)
class WrongNode:
    """The first wrong node, or nodes that are wrong only where the device fuses them.

    Attributes:
        run: which pass of the check vectors, such as "decode step at row 23"; "" if there is one.
        nodes: in the order of the graph. place: of the last one, from 1. of: nodes that depend on inputs.
        limit: the accepted error. outputs, inputs: tensors of these nodes.
    """

    run: str
    nodes: tuple[NodeFact, ...]
    place: int
    of: int
    limit: float
    outputs: tuple[ValueFact, ...]
    inputs: tuple[ValueFact, ...]

    def text(self) -> str:
        """Return a line about it."""
        worst = max(self.outputs, key=lambda value: value.error or 0.0)
        if len(self.nodes) == 1:
            node = self.nodes[0]
            known = (
                f" ({node.portable} in the bundle's graph)" if node.portable not in ("", node.name) else ""
            )
            what = f"node {node.text()}{known}"
        else:
            named = ", ".join(node.text() for node in self.nodes)
            what = f"fused nodes {named}, each of which is right by itself,"
        during = f", {self.run}" if self.run else ""
        given = ", ".join(f"{value.text()} ({value.error_text(self.limit)})" for value in self.inputs)
        return (
            f"{what} (number {self.place} of {self.of}{during}) gives {worst.text()} "
            f"{worst.error_text(self.limit)}, at most {self.limit:.0e} is accepted; it reads {given}"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return rows of a table about it."""
        rows: list[tuple[str, ...]] = [
            ("node" if len(self.nodes) == 1 else "fused", node.op, node.name, _portable(node))
            for node in self.nodes
        ]
        for what, values in (("input", self.inputs), ("output", self.outputs)):
            rows += [
                (what, value.name, f"{value.dtype}{list(value.shape)}", value.error_text(self.limit))
                for value in values
            ]
        return rows


def _portable(node: NodeFact) -> str:
    return f"{node.portable} in the bundle's graph" if node.portable else "made by the lowering"


@dataclass(frozen=True)
class Finding:
    """What was found in a stage.

    Attributes:
        error: largest of its outputs, in accepted errors. wrong: the node. remark: why outputs are wrong
            although no node is; "" if they are right, or `wrong` says it. nodes: in the lowered graph.
    """

    stage: str
    error: float
    nodes: int
    wrong: WrongNode | None = None
    remark: str = ""

    def raise_if_wrong(self, target: str) -> None:
        """Raises LiraError, which names the node, if the stage is wrong."""
        if self.wrong is not None:
            raise LiraError(f"the {target} engine of {self.stage} is wrong: {self.wrong.text()}; {REPORT}")
        if self.remark:
            raise LiraError(f"the {target} engine of {self.stage} is wrong: {self.remark}; {REPORT}")
