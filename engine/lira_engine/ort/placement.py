"""Find which execution provider ran each node of a graph, and refuse silent fallbacks to the CPU.

ONNX Runtime silently runs a node that its provider does not take on the CPU, and copies the tensors there
and back. The profile of a run shows this, in every version and after all fusions.
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

from lira_engine.engines.llm_tensors import with_lengths
from lira_engine.errors import LiraError
from lira_engine.ort.device import Device

SMALL = 4096
"""Most elements of an integer tensor that counts as sizes or positions. ONNX Runtime itself computes these on
the CPU if a shape is known; nothing waits for it."""
_COPIES = ("MemcpyToHost", "MemcpyFromHost")
_INTEGERS = ("int64", "int32", "bool")
_NAMED = 3


@dataclass(frozen=True)
class RanNode:
    """A node of a run. `outputs`: type and shape of each, such as ("float", (1, 256, 64))."""

    name: str
    op: str
    provider: str
    outputs: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def computes_data(self) -> bool:
        """Whether the node does, or may do, more than arithmetic on a few sizes and positions."""
        small = (kind in _INTEGERS and math.prod(shape) <= SMALL for kind, shape in self.outputs)
        return not self.outputs or not all(small)


@dataclass(frozen=True)
class Placement:
    """Execution providers of one run.

    Attributes:
        nodes: their number by provider. sizes_on_cpu: nodes on sizes and positions, counted apart. copies:
            between the memories of device and host, without the graph's inputs and outputs. elsewhere: nodes
            that ran on another provider than the device's.
    """

    nodes: dict[str, int]
    sizes_on_cpu: int
    copies: int
    elsewhere: tuple[RanNode, ...]

    def text(self) -> str:
        """Return text such as `412 CUDA, 9 on sizes, 2 copies`."""
        parts = [f"{n} {name.removesuffix('ExecutionProvider')}" for name, n in sorted(self.nodes.items())]
        if self.sizes_on_cpu:
            parts.append(f"{self.sizes_on_cpu} on sizes")
        if self.copies:
            parts.append(f"{self.copies} copies")
        return ", ".join(parts)


def placement(nodes: Iterable[RanNode], device: Device) -> Placement:
    """Count the nodes of a run on `device` by execution provider."""
    counted: Counter[str] = Counter()
    sizes = copies = 0
    elsewhere = []
    for node in nodes:
        here = node.provider in device.providers
        if node.op in _COPIES:
            copies += 1
        elif here or node.computes_data:
            counted[node.provider] += 1
            if not here:
                elsewhere.append(node)
        else:
            sizes += 1
    return Placement(dict(counted), sizes, copies, tuple(elsewhere))


def check_placement(stage: str, found: Placement, device: Device) -> None:
    """Raises LiraError if nodes of a stage ran elsewhere and `device` allows no fallback."""
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
    """Run a graph once, with the profiler on, on `feeds` for the portable one; return where its nodes ran.
    Raises LiraError if the graph cannot be loaded."""
    from lira_engine.ort.gpu_errors import gpu_errors_told
    from lira_engine.ort.session import open_session

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, device=device, profile=Path(folder) / "run")
        with gpu_errors_told(device):
            session.run(None, with_lengths(feeds, {tensor.name for tensor in session.get_inputs()}))
        profile = Path(session.end_profiling())
        return placement(ran_nodes(json.loads(profile.read_text(encoding="utf-8"))), device)


def ran_nodes(events: Iterable[Mapping[str, Any]]) -> Iterable[RanNode]:
    """Yield the nodes among the events of ONNX Runtime's profile, each once, from its first run."""
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
