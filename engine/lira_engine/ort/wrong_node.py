"""Find the first node of a stage that a device computes wrongly.

A tensor that a run returns is no longer inside a fused kernel, so each run returns as few as tell where to
look: those that cross one cut of the graph (`Cuts.crossing`). If they are right, all that follows depends on
right tensors only. Between a right cut and a wrong one the search halves; it ends at one node.

Then the node is computed on the CPU from what the device gave it. Is that what the device made, too, the node
is innocent. Either its tensor is right only because it is returned, which breaks a fusion: then the search
halves the nodes before it, for the least that must stay inside for the result to be wrong. Or rounding added
up: then the CPU goes on from the device's tensors, and the search from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.accuracy import check_stage_outputs
from lira_engine.engines.beside_reference import beside_reference, reference_limit
from lira_engine.engines.finding import Finding, NodeFact, ValueFact, WrongNode
from lira_engine.engines.replay import LlmPass, tile_counts
from lira_engine.errors import LiraError
from lira_engine.ort.cuts import Cuts, portable_names
from lira_engine.ort.plain_reference import PlainReference
from lira_engine.ort.stage_passes import Arrays, Ran, run_passes, together
from lira_engine.system.machine import available_mib

MOST_RESTARTS = 24
"""Innocent nodes after which the search gives up: rounding grows everywhere."""
PEAK_PER_BYTE, PEAK_PER_INPUT_BYTE = 2.5, 300
"""Memory of the reference per byte of weights, an estimate: fp16 becomes fp32, and half as much again. And of
tensors per byte of a picture: LIRA-2B's pixel encoder takes 3,681 MiB for 12 MiB (docs/true-size.md)."""


class OnDevice(Protocol):
    """A stage on a device.

    Attributes:
        stage, precision: of the engine. graph: ONNX file of what the engine computes. tiles_at_once: most
            tiles of a pass of the semantic encoder.
    """

    stage: str
    precision: str
    graph: Path
    tiles_at_once: int

    def answer(self, vectors: CheckVectors, tiles: int) -> dict[str, np.ndarray] | None:
        """Return the outputs on the check vectors as the runtime computes them, with `tiles` in a pass; None
        if the runtime also uses other graphs than this one."""
        ...

    def llm_passes(self, vectors: CheckVectors) -> list[LlmPass]:
        """Return passes of a size that the engine takes."""
        ...

    def whole(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Run the engine once; return all outputs."""
        ...

    def part(self, graph: Path, feeds: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Build a part of the graph as the engine was built, and run it once; return its outputs."""
        ...


def search_stage(
    bundle: Bundle, device: OnDevice, threads: int | None, progress: Callable[[str], None]
) -> Finding:
    """Compare a stage on its device with its lowered graph on the CPU; if they differ, find the node.

    Raises LiraError if memory is short, or ONNX Runtime or the device does not run the graph.
    """
    vectors, stage = bundle.check_vectors(device.stage), device.stage
    _check_memory(device, vectors)
    cuts = Cuts(device.graph)
    reference = PlainReference(cuts, threads)
    passes = device.llm_passes(vectors) if stage == "llm" else []

    def on_cpu(feeds: Arrays) -> dict[str, np.ndarray]:
        return reference.values(cuts.outputs, feeds)

    progress(f"{stage}: reference")
    expected = together(run_passes(stage, cuts, vectors, passes, on_cpu), vectors)
    largest = 0.0
    for tiles in tile_counts(stage, device.tiles_at_once):
        progress(f"{stage}: device")
        answer = device.answer(vectors, tiles)
        if answer is None:
            answer = together(run_passes(stage, cuts, vectors, passes, device.whole), vectors)
        alike = "fp32" if device.precision == "fp32" else "fp16"  # both sides have the same weights
        try:
            errors = check_stage_outputs(stage, alike, answer, replace(vectors, outputs=expected)).errors
        except LiraError:
            search = _Search(
                device, cuts, reference, device.precision, portable_names(bundle.stage_file(stage)), progress
            )
            found = search.in_passes(run_passes(stage, cuts, vectors, passes, device.whole, tiles))
            wrong, remark = (found, "") if isinstance(found, WrongNode) else (None, found)
            return Finding(stage, np.inf, len(cuts.nodes), wrong, remark)
        largest = max(largest, *errors.values())
    return Finding(stage, largest, len(cuts.nodes))


def _check_memory(device: OnDevice, vectors: CheckVectors) -> None:
    data = device.graph.with_name(f"{device.graph.name}.data")
    weights = data.stat().st_size if data.exists() else 0
    pictures = sum(array[:1].nbytes for name, array in vectors.inputs.items() if name == "pixel_values")
    needed = int(weights * PEAK_PER_BYTE + pictures * PEAK_PER_INPUT_BYTE) >> 20
    free = available_mib()
    if free is not None and free < needed:
        raise LiraError(
            f"{device.stage} needs about {needed:,} MiB of memory to be computed on the CPU, {free:,} MiB "
            "are free, swap included: close other programs, or add swap"
        )


@dataclass(frozen=True)
class _Search:
    """A search in the passes of one stage."""

    device: OnDevice
    cuts: Cuts
    reference: PlainReference
    precision: str
    portable: Mapping[str, str]
    progress: Callable[[str], None]

    def in_passes(self, passes: Iterable[Ran]) -> WrongNode | str:
        """Return the first wrong node of all passes, or why no node is."""
        grew = ""
        for ran in passes:
            found = self.in_pass(ran)
            if isinstance(found, WrongNode):
                return found
            grew = grew or found or ""
        return grew or (
            "its outputs differ from those of its lowered graph, and each pass of the graph alone is right: "
            "what the runtime adds is wrong (how passes follow each other, CUDA graphs, caches that are "
            "updated in place)"
        )

    def in_pass(self, ran: Ran) -> WrongNode | str | None:
        """Return the first wrong node of a pass, None if its outputs are right, or why no node is."""
        end = len(self.cuts.nodes)
        start, given = 0, dict(ran.feeds)
        for _ in range(MOST_RESTARTS):
            expected = self.reference.values(self.cuts.outputs, given)
            if self._worst(ran.outputs, expected) <= 1:
                if start == 0:
                    return None
                break
            if start == 0 and self._right_if_built_again(ran, expected):
                return (
                    "its engine file is: the same graph, built again, is right on this device; build with "
                    "--force"
                )
            start, given, seen = self._last_right_cut(ran, start, given)
            wrong = self._judge(ran, start, given, seen)
            if wrong is not None:
                return wrong
            start, given = start + 1, {**ran.feeds, **seen}
            if start == end:
                break
        node = self.cuts.nodes[start - 1]
        return (
            f"no node is wrong by itself; rounding grows beyond what is accepted, last at {node.op_type} "
            f"{node.name} ({ran.name or 'the only pass'})"
        )

    def _right_if_built_again(self, ran: Ran, expected: Arrays) -> bool:
        return self._worst(self._on_device(ran.feeds, self.cuts.outputs, expected), expected) <= 1

    def _last_right_cut(
        self, ran: Ran, start: int, given: dict[str, np.ndarray]
    ) -> tuple[int, dict[str, np.ndarray], Arrays]:
        """Return a right cut that is one node before a wrong one, the CPU's tensors there, and the device's
        at the wrong one. The cut at `start`, where `given` are the tensors, is right, that at the end is
        wrong."""
        right, wrong, seen = start, len(self.cuts.nodes), ran.outputs
        while wrong - right > 1:
            pass_name = f"{ran.name}, " if ran.name else ""
            self.progress(f"{self.device.stage}: {pass_name}nodes {right + 1} to {wrong}")
            middle = (right + wrong) // 2
            names = self.cuts.crossing(middle)
            expected = self.reference.values(names, given)
            found = self._on_device(ran.feeds, names, expected)
            if self._worst(found, expected) <= 1:
                right, given = middle, {**ran.feeds, **expected}
            else:
                wrong, seen = middle, found
        return right, given, seen

    def _judge(self, ran: Ran, cut: int, given: dict[str, np.ndarray], seen: Arrays) -> WrongNode | None:
        """Return the node behind a right cut if it is wrong, or what it is fused with; None if neither.
        `seen`: the device's tensors behind the node."""
        inputs, outputs = self.cuts.read_by(cut), self.cuts.made_by(cut)
        names = [name for name in (*inputs, *outputs) if name not in ran.feeds]
        expected = self.reference.values(names, given)
        found = self._on_device(ran.feeds, names, expected)
        errors = self._errors(found, expected)
        alone = self.reference.values(
            outputs, {**ran.feeds, **{name: found[name] for name in names if name in inputs}}
        )
        by_itself = self._errors(found, alone)
        if max(by_itself.values()) > 1:
            errors |= by_itself
            return self._wrong(ran, [cut], {**ran.feeds, **found}, errors)
        if self._worst(found, {name: expected[name] for name in outputs}) > 1:
            return None  # its inputs were not quite right
        return self._fused(ran, cut, given, seen)

    def _fused(self, ran: Ran, cut: int, given: dict[str, np.ndarray], seen: Arrays) -> WrongNode:
        """Return the nodes, up to that behind a right cut, that are wrong as long as no tensor between them
        is returned."""
        after = self.cuts.crossing(cut + 1)
        expected = self.reference.values(after, given)
        errors = self._errors(seen, expected)
        whole, broken = 0, cut
        while broken - whole > 1:
            self.progress(f"{self.device.stage}: fused with nodes {whole + 1} to {broken}")
            middle = (whole + broken) // 2
            before = self.cuts.crossing(middle)
            wanted = {**self.reference.values(before, ran.feeds), **expected}
            found = self._on_device(ran.feeds, list(wanted), wanted)
            if self._worst(found, expected) > 1:
                whole = middle
            else:
                broken = middle
        bad = [name for name, error in errors.items() if error > 1]
        numbers = self.cuts.needed_for(bad, whole, cut + 1)
        made = {name for i in numbers for name in self.cuts.nodes[i].output}
        inputs = {name for i in numbers for name in self.cuts.read_by(i)} - made
        values = {**ran.feeds, **self.reference.values(inputs, ran.feeds), **seen}
        return self._wrong(ran, numbers, values, errors)

    def _wrong(
        self, ran: Ran, numbers: Sequence[int], values: Mapping[str, np.ndarray], errors: Mapping[str, float]
    ) -> WrongNode:
        made = [name for i in numbers for name in self.cuts.nodes[i].output]
        read = dict.fromkeys(name for i in numbers for name in self.cuts.read_by(i) if name not in made)

        def fact(name: str) -> ValueFact:
            error = None if name in ran.feeds else errors.get(name, 0.0)
            return ValueFact(name, values[name].shape, values[name].dtype.name, error)

        return WrongNode(
            run=ran.name,
            nodes=tuple(self._fact(i) for i in numbers),
            place=numbers[-1] + 1,
            of=len(self.cuts.nodes),
            limit=reference_limit(self.precision),
            outputs=tuple(fact(name) for name in made if name in errors),
            inputs=tuple(fact(name) for name in read),
        )

    def _fact(self, number: int) -> NodeFact:
        node = self.cuts.nodes[number]
        known = [self.portable[name] for name in (node.name, *node.output) if name in self.portable]
        return NodeFact(node.op_type, node.name, known[0] if known else "")

    def _on_device(
        self, feeds: Arrays, names: Sequence[str], expected: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return tensors of a run on the device. `expected`: the CPU's, whose dtypes they have."""
        types = {name: expected[name].dtype for name in names}
        with self.cuts.written(names, feeds, types) as (file, fed):
            return self.device.part(file, fed, names)

    def _errors(self, found: Arrays, expected: Arrays) -> dict[str, float]:
        return {
            name: beside_reference(self.precision, found[name], array) for name, array in expected.items()
        }

    def _worst(self, found: Arrays, expected: Arrays) -> float:
        return max(self._errors(found, expected).values(), default=0.0)
