"""What passes of many rows and of many tiles launch and take, on the real onnxruntime-gpu."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from lira_engine import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.bundle.manifest import MAX_TILES
from lira_engine.engines.record import read_build
from lira_engine.engines.replay import run_stage
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.nodes import CONTRIB, nodes_of
from lira_engine.lowering.passes.pad_outputs import PadOutputs
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.build_cuda import fused_int4
from lira_engine.ort.device import cuda_device
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.session import open_session
from lira_engine.ort.stage import OrtStage
from lira_runtime import Lira

if TYPE_CHECKING:
    from .conftest import Asking

DEQUANTIZE = "Dequantize4BitsKernel"
ONE_ROW, FEW_ROWS = "MatMulFloat4BitsKernelM1", "MatMulFloat4BatchedKernel"
FUSED = ("fpA_intB_gemv", "GemmFpAIntB")
LIRA_2B_TOKENS = 92559
MOST = MAX_TILES + 1


def int4_matmul(path: Path, inputs: int, outputs: int, block: int) -> Path:
    """Write a graph of one int4 matmul."""
    node = helper.make_node(
        "MatMulNBits",
        ["x", "packed", "scales"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=4,
        block_size=block,
    )
    weights = [
        numpy_helper.from_array(np.zeros((outputs, inputs // block, block // 2), np.uint8), "packed"),
        numpy_helper.from_array(np.ones(outputs * (inputs // block), np.float16), "scales"),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["S", size])
        for name, size in (("x", inputs), ("y", outputs))
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "int4", [x], [y], weights)
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def kernels(path: Path, fuses: bool, rows: int, asking: Asking) -> Mapping[str, int]:
    """Return what a pass launches."""
    device = replace(cuda_device("int4"), fuses_int4=fuses)
    session = open_session(path, device=device)
    width = session.get_inputs()[0].shape[1]
    with asking() as asked:
        session.run(None, {"x": np.zeros((rows, width), np.float16)})
    return asked.kernels


def launched(found: Mapping[str, int], *names: str) -> int:
    return sum(count for kernel, count in found.items() if any(name in kernel for name in names))


@pytest.mark.parametrize(("rows", "name"), [(1, ONE_ROW), (4, FEW_ROWS), (16, FEW_ROWS)])
def test_a_few_rows_read_int4_weights_as_they_are(
    tmp_path: Path, rows: int, name: str, asking: Asking
) -> None:
    found = kernels(int4_matmul(tmp_path / "int4.onnx", 256, 256, 32), False, rows, asking)
    assert launched(found, name) == sum(found.values()) == 1


@pytest.mark.parametrize("rows", [17, 300])
def test_more_rows_write_them_out_first(tmp_path: Path, rows: int, asking: Asking) -> None:
    found = kernels(int4_matmul(tmp_path / "int4.onnx", 256, 256, 32), False, rows, asking)
    assert launched(found, DEQUANTIZE) == 1 and launched(found, "cublas") == 1


@pytest.mark.parametrize("rows", [1, 16])
def test_outputs_that_are_no_multiple_of_eight_are_padded(tmp_path: Path, rows: int, asking: Asking) -> None:
    """Those of LIRA-2B's LM head: as it is, a step writes it out in fp16, in three parts."""
    path = int4_matmul(tmp_path / "head.onnx", 2048, LIRA_2B_TOKENS, 32)
    found = kernels(path, False, rows, asking)
    assert launched(found, DEQUANTIZE) == launched(found, "cublas") == 3
    padded = PadOutputs()(ir.load(path)).model
    ir.save(padded, path)
    found = kernels(path, False, rows, asking)
    assert launched(found, ONE_ROW if rows == 1 else FEW_ROWS) == 1
    assert not launched(found, DEQUANTIZE, "cublas")
    assert fused_int4(path) == "1 of 1 int4 matmuls are fused"
    found = kernels(path, True, rows, asking)
    assert launched(found, *FUSED) == 1 and not launched(found, DEQUANTIZE, "cublas")


@pytest.mark.parametrize("padded", [False, True])
def test_a_step_reads_all_int4_weights_as_they_are(
    fresh_nano: Callable[[], Path], tmp_path: Path, padded: bool, asking: Asking
) -> None:
    """lira-nano's vocabulary is no multiple of 8: as it is, its head is written out."""
    passes = [one for one in cuda_pipeline("llm", "int4") if padded or type(one) is not PadOutputs]
    model = apply(ir.load(fresh_nano() / "llm.onnx"), passes)
    save_graph(model, tmp_path / "llm.onnx")
    matmuls = len(nodes_of(model, "MatMulNBits", domain=CONTRIB))
    with OrtLlm(tmp_path / "llm.onnx", device=replace(cuda_device("int4"), captures=False)) as llm:
        cache, row = llm.new_cache(), np.zeros((1, llm.sizes["hidden_size"]), np.float32)
        llm.forward(row.repeat(5, axis=0), cache)
        with asking() as asked:
            llm.forward(row, cache)
    others = 0 if padded else 1
    assert launched(asked.kernels, ONE_ROW) == matmuls - others > 20 - others
    assert launched(asked.kernels, DEQUANTIZE) == launched(asked.kernels, "cublas") == others


@pytest.mark.parametrize("rows", [1, 4, 17, 300])
def test_fused_matmuls_do_not(tmp_path: Path, rows: int, asking: Asking) -> None:
    path = int4_matmul(tmp_path / "int4.onnx", 256, 256, 32)
    found = kernels(path, True, rows, asking)
    assert launched(found, *FUSED) == sum(found.values()) == 1
    assert fused_int4(path) == "1 of 1 int4 matmuls are fused"


@pytest.mark.parametrize(("outputs", "block"), [(96, 32), (256, 64), (256, 128)])
def test_others_stay_as_they_are_and_the_build_says_so(
    tmp_path: Path, outputs: int, block: int, asking: Asking
) -> None:
    """ONNX Runtime says nothing: the line is ours, by its conditions."""
    path = int4_matmul(tmp_path / "int4.onnx", 256, outputs, block)
    assert launched(kernels(path, True, 300, asking), DEQUANTIZE) == 1
    assert fused_int4(path) == (
        "0 of 1 int4 matmuls are fused; the others have blocks other than 32, or outputs no multiple of 64"
    )


def test_an_image_is_one_pass_of_its_tiles(built: Callable[[str], Path], asking: Asking) -> None:
    """A region is a pass of one."""
    bundle = Bundle.open(built("fp16"))
    record = read_build(bundle.engine_folder("cuda", "fp16"), "")
    assert record.options["tiles"] == "auto" and record.settled["tiles"] == MOST
    assert f"up to {MOST} tiles a pass" in record.said
    passes: list[int] = []
    with Lira.open(bundle.path, "cuda", "fp16", unverified=True) as lira:
        start = lira.engines.semantic_encoder.start

        def counted(feeds: Mapping[str, np.ndarray]) -> object:
            passes.append(len(feeds["pixel_values"]))
            return start(feeds)

        lira.engines.semantic_encoder.start = counted  # type: ignore[method-assign, assignment]
        scene = lira.look(np.zeros((400, 600, 3), np.uint8), max_tiles=12)
        assert passes == [scene.tiles] and scene.tiles > 2


def test_tiles_that_do_not_fit_are_refused_and_one_then_runs(
    built: Callable[[str], Path], asking: Asking
) -> None:
    """On a card whose memory is between what one tile takes and what all take."""
    bundle = Bundle.open(built("fp16"))

    def peak(tiles: int) -> int:
        gc.collect()
        with asking() as others:
            pass
        with asking() as asked, open_stage(bundle) as stage:
            run_stage(stage, bundle.check_vectors("semantic_encoder").inputs, tiles)
        return asked.memory["peak"] - others.memory["now"]

    one, all_of_them = peak(1), peak(MOST)
    assert all_of_them - one > 4 << 20
    done = subprocess.run(
        [sys.executable, __file__, bundle.path],
        env=os.environ | {"HOLLOW_MEMORY_MIB": str(((one + all_of_them) // 2) >> 20)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refused, then = done.stdout.splitlines()
    assert refused.startswith("OutOfMemory: out of memory on the GPU") and then == "one tile runs"


def open_stage(bundle: Bundle) -> OrtStage:
    file = bundle.engine_folder("cuda", "fp16") / "semantic_encoder.onnx"
    spec = bundle.manifest.stages["semantic_encoder"]
    return OrtStage("semantic_encoder", file, spec, device=cuda_device("fp16"))


def main(bundle: Bundle) -> None:
    from lira_engine.errors import OutOfMemory

    feeds = bundle.check_vectors("semantic_encoder").inputs
    with open_stage(bundle) as stage:
        try:
            run_stage(stage, feeds, MOST)
        except OutOfMemory as error:
            print("OutOfMemory:", error)
        run_stage(stage, feeds, 1)
        print("one tile runs")


if __name__ == "__main__":
    main(Bundle.open(Path(sys.argv[1])))
