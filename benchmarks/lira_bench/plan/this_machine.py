"""Measure this machine as a device: ONNX Runtime's matmuls and the memory's read bandwidth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from lira_bench.bandwidth import read_bandwidth
from lira_bench.plan.device import THIS_MACHINE, Device, Family
from lira_engine.errors import LiraError
from lira_engine.system import machine

_ROWS, _SIZE, _BLOCK = 512, 2048, 32
_REPEATS = 8


@cache
def measured() -> Device:
    """Measure memory bandwidth and the peaks of fp32, int8 and int4 matmuls, in about four seconds.

    Other work on the machine lowers the figures. Raises LiraError if ONNX Runtime is missing.
    """
    fp32, int8, int4 = (_peak(make) for make in (_fp32, _int8, _int4))
    here = machine.this_machine()
    if here.memory_gib is None:
        raise LiraError("how much memory this machine has is not known here: name a --device")
    return Device(
        THIS_MACHINE,
        f"this machine ({here.cpu}, {here.cores} cores)",
        family(),
        memory_gib=round(here.memory_gib, 1),
        bandwidth=round(read_bandwidth(), 1),
        fp32=fp32,
        fp16=0,
        int8=int8,
        int4=int4,
        watts=(),
        source=f"measured now, on {here.cores} cores: lira_bench.bandwidth, and the best of "
        f"{_REPEATS} matmuls of {_ROWS} x {_SIZE} by {_SIZE} x {_SIZE} in ONNX Runtime per precision",
        derived="none",
    )


def family(facts: Path = Path("/proc/cpuinfo")) -> Family:
    """Return the family of this CPU by its instruction sets; "cpu-other" where Linux does not list them."""
    flags: set[str] = set()
    with suppress(OSError):
        for line in facts.read_text(encoding="utf-8").splitlines():
            key, _, listed = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags = set(listed.split())
                break
    if "avx512_vnni" in flags:
        return "cpu-avx512-vnni"
    return "cpu-avx2" if "avx2" in flags and "avx_vnni" not in flags else "cpu-other"


def _fp32(rng: np.random.Generator) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    weight = rng.standard_normal((_SIZE, _SIZE)).astype(np.float32)
    return helper.make_node("MatMul", ["x", "weight"], ["y"]), {"weight": weight}


def _int8(rng: np.random.Generator) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    """Return the matmul of the encoders in quantized engines."""
    weight = rng.integers(-127, 128, (_SIZE, _SIZE)).astype(np.int8)
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "weight", "scales"], ["y"], domain="com.microsoft")
    return node, {"weight": weight, "scales": np.ones(_SIZE, np.float32)}


def _int4(rng: np.random.Generator) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    """Return the matmul of the language model in quantized engines."""
    blocks = _SIZE // _BLOCK
    weight = rng.integers(0, 256, (_SIZE, blocks, _BLOCK // 2)).astype(np.uint8)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "weight", "scales"],
        ["y"],
        domain="com.microsoft",
        K=_SIZE,
        N=_SIZE,
        bits=4,
        block_size=_BLOCK,
        accuracy_level=4,
    )
    return node, {"weight": weight, "scales": np.ones(_SIZE * blocks, np.float32)}


def _peak(make: object) -> float:
    """Return the best rate of a matmul, 10^12 operations a second."""
    from lira_engine.ort.package import onnxruntime  # an error names the line that installs it

    rng = np.random.default_rng(0)
    node, constants = make(rng)  # type: ignore[operator]
    shape: Sequence[int] = (_ROWS, _SIZE)
    graph = helper.make_graph(
        [node],
        "peak",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        session.run(None, feeds)
        best = min(best, time.perf_counter() - started)
    return round(2 * _ROWS * _SIZE * _SIZE / best / 1e12, 4)
