"""Which execution provider ran each node of a graph, and whether that is where it should have run.

ONNX Runtime hands a node that its provider does not take to the CPU, silently, and copies the tensors there
and back. The profile of a run says what happened, in every version and after all fusions.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lira_engine.errors import LiraError
from lira_engine.ort.device import Device

SMALL = 4096
"""Elements up to which integers count as sizes and positions. ONNX Runtime computes with these on the CPU by
itself, where a shape is known; nothing waits for it."""
_COPIES = ("MemcpyToHost", "MemcpyFromHost")
_WHOLE = ("int64", "int32", "bool")
_NAMED = 3


@dataclass(frozen=True)
class RanNode:
    """One node of a run. `outputs`: type and shape of each, such as ("float", (1, 256, 64))."""

    name: str
    op: str
    provider: str
    outputs: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def counts(self) -> bool:
        """Whether it does, or may do, more than arithmetic with a few sizes and positions."""
        small = (kind in _WHOLE and math.prod(shape) <= SMALL for kind, shape in self.outputs)
        return not self.outputs or not all(small)


@dataclass(frozen=True)
class Placement:
    """Nodes of one run by execution provider, those on sizes and positions apart; and copies between the
    device's memory and the host's, the graph's own inputs and outputs not included."""

    nodes: dict[str, int]
    sizes_on_cpu: int
    copies: int
    elsewhere: tuple[RanNode, ...]

    def text(self) -> str:
        """`412 CUDA, 9 on sizes, 2 copies`"""
        parts = [f"{n} {name.removesuffix('ExecutionProvider')}" for name, n in sorted(self.nodes.items())]
        if self.sizes_on_cpu:
            parts.append(f"{self.sizes_on_cpu} on sizes")
        if self.copies:
            parts.append(f"{self.copies} copies")
        return ", ".join(parts)


def placement(nodes: Iterable[RanNode], device: Device) -> Placement:
    """Sort the nodes of a run on `device`."""
    counted: Counter[str] = Counter()
    sizes = copies = 0
    elsewhere = []
    for node in nodes:
        here = node.provider in device.providers
        if node.op in _COPIES:
            copies += 1
        elif here or node.counts:
            counted[node.provider] += 1
            if not here:
                elsewhere.append(node)
        else:
            sizes += 1
    return Placement(dict(counted), sizes, copies, tuple(elsewhere))


def check_placement(stage: str, found: Placement, device: Device) -> None:
    """Raise LiraError where nodes of a stage ran elsewhere than on a device that allows no fallback."""
    if not found.elsewhere or device.allow_fallback:
        return
    named = "; ".join(f"{node.op} {node.name}" for node in found.elsewhere[:_NAMED])
    more = f" and {len(found.elsewhere) - _NAMED} more" if len(found.elsewhere) > _NAMED else ""
    raise LiraError(
        f"{len(found.elsewhere)} nodes of {stage} ran on {found.elsewhere[0].provider}, expected "
        f"{' or '.join(device.providers)}: {named}{more}; build with --allow-fallback to accept this, with a "
        "copy of their tensors in each run"
    )


def placement_of_run(path: Path, device: Device, feeds: Mapping[str, np.ndarray]) -> Placement:
    """Run a graph once on `feeds`, with the profiler on. Raises LiraError where it cannot be loaded."""
    from lira_engine.ort.session import open_session

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, device=device, profile=Path(folder) / "run")
        session.run(None, dict(feeds))
        profile = Path(session.end_profiling())
        return placement(ran_nodes(json.loads(profile.read_text(encoding="utf-8"))), device)


def ran_nodes(events: Iterable[Mapping[str, Any]]) -> Iterable[RanNode]:
    """The nodes among the events of ONNX Runtime's profile, each once, as it ran first."""
    seen = set()
    for event in events:
        name = str(event.get("name", ""))
        arguments = event.get("args") or {}
        if event.get("cat") != "Node" or not name.endswith("_kernel_time") or "provider" not in arguments:
            continue
        node = (arguments.get("node_index"), name)
        if node not in seen:
            seen.add(node)
            outputs = tuple(
                (kind, tuple(shape))
                for output in arguments.get("output_type_shape", [])
                for kind, shape in output.items()
            )
            op, provider = str(arguments.get("op_name", "")), str(arguments["provider"])
            yield RanNode(name.removesuffix("_kernel_time"), op, provider, outputs)
