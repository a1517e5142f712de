"""How long a matmul takes in each form: measured on this machine, or predicted for a device.

A layer for which 8 bits are no faster stays a float. Matmuls are timed alone on one thread, with fp32 beside
every form in turns.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lira_calib.methods.rules import Template
from lira_engine.bundle.external_data import save_graph
from lira_engine.engines.recipe import Form, StageRecipe
from lira_engine.errors import LiraError
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.system.cache import cache_folder, read_own_json, write_own
from lira_engine.system.machine import cpu_name
from lira_engine.system.turns import in_turns

FLOAT = "float"
"""Name of the form of weights that stay floats: fp32 on CPUs, fp16 on GPUs."""

_ROUNDS = 5  # at least
_WIDEST = 4096  # outputs; the time of more is in proportion, as is that of more rows than `_measured_rows`
_WORK = 5e8  # multiplications of one run, if that is more than _FEW_ROWS rows
_FEW_ROWS = 256  # 0.96 of the speed of 1,024
_READ_ONCE = 64  # rows up to which the time is that of reading the weight
_LARGE = 32 << 20  # bytes; weights of a stage above this come from memory, not from a CPU's caches
_RANGE = (-4.0, 4.0)


@dataclass(frozen=True)
class Product:
    """A matmul of `rows` [rows, inputs] with a weight [inputs, outputs]."""

    inputs: int
    outputs: int
    rows: int


Times = dict[str, float]
"""Name of a form (`Template.text`, or FLOAT) -> seconds of one matmul."""


def measured_times(
    products: Collection[Product],
    forms: Sequence[Template],
    seconds: float = 90.0,
    cold: bool | None = None,
) -> dict[Product, Times]:
    """Return the seconds of each product in each form and as a float, on one thread of this machine's CPU.

    Times are processor times in turns (lira_engine.system.turns); each holds some microseconds of the call,
    so that savings mean more than ratios. They are kept in the user's cache folder by processor, ONNX Runtime
    and lowering code, and measured again only if one of these changes.

    Args:
        forms: those that the target `cpu` has.
        seconds: of all runs together; each product has at least five rounds, however long they take.
        cold: whether weights come from memory, as they do when a pass reads more of them than the CPU caches;
            None: if the products' weights are more than 32 MiB of 4-bit integers.
    """
    distinct = sorted(set(products), key=lambda one: (one.inputs, one.outputs, one.rows))
    if cold is None:
        cold = sum(one.inputs * one.outputs for one in products) // 2 > _LARGE
    known = _Known(_setting(cold))
    names = [one.text() for one in forms]
    missing = [one for one in distinct if not known.has(one, names)]
    work = {one: _work(one) for one in missing}
    for product in missing:
        share = seconds * work[product] / sum(work.values())
        known.keep(product, _measure(product, forms, share, cold))
    return {one: {name: known.times(one)[name] for name in (FLOAT, *names)} for one in distinct}


def predicted_times(
    products: Collection[Product], forms: Sequence[Template], device: str, stage: str
) -> dict[Product, Times]:
    """Return the seconds of each product of a stage in each form and as a float, PREDICTED for a device of
    `lira-edge plan`, with the shares that such devices reach in such work.

    fp8, whose share is not known, is left out. Raises LiraError for an unknown device.
    """
    from lira_bench.plan.devices import find
    from lira_bench.plan.graph_costs import Matrix
    from lira_bench.plan.matmul import matmul_seconds

    known = find(device)
    wanted = [(FLOAT, FLOAT, 0)]
    wanted += [(one.text(), one.kind, one.block or 0) for one in forms if one.kind != "fp8"]
    return {
        one: {
            name: matmul_seconds(known, stage, Matrix(one.inputs, one.outputs, 1), one.rows, kind, block)
            for name, kind, block in wanted
        }
        for one in set(products)
    }


def _measured_rows(product: Product) -> int:
    """Return how many rows a run has: short runs have more rounds."""
    elements = product.inputs * min(product.outputs, _WIDEST)
    return min(product.rows, max(_FEW_ROWS, int(_WORK / elements)))


def _work(product: Product) -> float:
    """Return a measure of one run: its multiplications, and more for reading the weight."""
    return product.inputs * min(product.outputs, _WIDEST) * (_measured_rows(product) + 16.0)


def _measure(product: Product, forms: Sequence[Template], seconds: float, cold: bool) -> Times:
    """Return the times of a product: its forms in turns for so many seconds."""
    from lira_engine.ort.session import open_session

    narrow, rows = min(product.outputs, _WIDEST), _measured_rows(product)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, rows, product.inputs)).astype(np.float32).clip(*_RANGE)
    weight = rng.standard_normal((product.inputs, narrow)).astype(np.float32)
    forget = np.zeros(4 * _LARGE if cold and rows <= _READ_ONCE else 0, np.uint8)
    sessions: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="lira-edge-") as folder:
        for name, form in [(FLOAT, None), *((one.text(), one.form(_RANGE)) for one in forms)]:
            file = Path(folder, str(len(sessions)), "matmul.onnx")
            file.parent.mkdir()
            save_graph(_matmul(rows, weight, form), file)
            sessions[name] = open_session(file, threads=1)
            sessions[name].run(None, {"x": x})  # the first run allocates
        until = time.perf_counter() + seconds
        turns = in_turns(
            [partial(session.run, None, {"x": x}) for session in sessions.values()],
            more=lambda turns: turns.rounds < _ROUNDS or time.perf_counter() < until,
            before=lambda: np.add(forget, 1, out=forget),  # weights leave the caches
        )
    scale = product.outputs / narrow * product.rows / rows
    return {name: took * scale for name, took in zip(sessions, turns.typical(), strict=True)}


def _matmul(rows: int, weight: np.ndarray, form: Form | None) -> ir.Model:
    """Return an engine's graph of one matmul, y = x [1, rows, K] weight [K, N]."""
    inputs, outputs = weight.shape
    x, y = (
        ir.Value(name=name, shape=ir.Shape((1, rows, width)), type=ir.TensorType(ir.DataType.FLOAT))
        for name, width in (("x", inputs), ("y", outputs))
    )
    constant = ir.Value(
        name="weight", shape=ir.Shape(weight.shape), const_value=ir.tensor(weight, name="weight")
    )
    constant.type = ir.TensorType(ir.DataType.FLOAT)
    node = ir.node("MatMul", [x, constant], outputs=[y], name="matmul")
    graph = ir.Graph([x], [y], nodes=[node], initializers=[constant], opset_imports={"": 24}, name="matmul")
    recipe = StageRecipe({} if form is None else {"weight": form})
    return apply(ir.Model(graph, ir_version=10), cpu_pipeline("sefe", "mixed", recipe=recipe))


def _setting(cold: bool) -> str:
    """Return what times depend on beside the product."""
    from lira_engine.engines.fingerprint import lowering_fingerprint
    from lira_engine.ort.package import onnxruntime

    memory = "weights from memory" if cold else "weights from caches"
    code = lowering_fingerprint(())
    return f"{cpu_name()}, one thread, ONNX Runtime {onnxruntime.__version__}, lowering {code}, {memory}"


class _Known:
    """Times that were measured in a setting; matmuls.json in the cache folder. Losing it costs time only."""

    def __init__(self, setting: str) -> None:
        self._path = cache_folder() / "matmuls.json"
        self._setting = setting
        self._times = {key: times for key, times in self._entries()}

    def has(self, product: Product, names: Sequence[str]) -> bool:
        """Return whether all the forms were measured together."""
        return {FLOAT, *names} <= self._times.get(_key(product), {}).keys()

    def times(self, product: Product) -> Times:
        return self._times[_key(product)]

    def keep(self, product: Product, times: Times) -> None:
        self._times[_key(product)] = times
        everything = read_own_json(self._path) | {self._setting: self._times}
        with suppress(OSError, LiraError):
            write_own(self._path, json.dumps(everything, indent=1).encode())

    def _entries(self) -> Iterator[tuple[str, Times]]:
        entries = read_own_json(self._path).get(self._setting)
        for key, times in entries.items() if isinstance(entries, dict) else ():
            if isinstance(times, dict) and all(
                isinstance(one, float) and 0 < one < inf for one in times.values()
            ):
                yield key, times


def _key(product: Product) -> str:
    return f"{product.rows} x {product.inputs} x {product.outputs}"
