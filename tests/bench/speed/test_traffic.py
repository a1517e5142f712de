"""The bytes of a cache's rows are those of the engine: graphs of target cuda, and records of TensorRT's."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lira_bench.speed.traffic import cache_bytes, weight_bytes
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.llm_tensors import is_cache_input
from lira_engine.engines.record import BUILD_NAME, Build
from lira_engine.errors import LiraError
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline

BUILD = Build(
    "0", "", "tensorrt", "fp16", {}, {}, {}, {}, {}, {"llm": "fp16"}, {}, {}, {}
)  # fmt: skip
PIPELINES = {
    "cuda": cuda_pipeline,
    "cache_update": partial(tensorrt_pipeline, dialect="cache_update", block=32),
    "decomposed": partial(tensorrt_pipeline, dialect="decomposed", block=32),
}


def lowered(bundle: Bundle, pipeline: str, precision: str) -> ir.Model:
    passes: Any = PIPELINES[pipeline]("llm", precision)  # type: ignore[operator]
    return apply(ir.load(bundle.stage_file("llm")), passes)


@pytest.mark.portable
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4", "mixed"])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_cache_counts_as_its_engine_keeps_it(
    nano_bundle: Path, tmp_path: Path, pipeline: str, precision: str
) -> None:
    bundle = Bundle.open(nano_bundle)
    graph = lowered(bundle, pipeline, precision)
    (dtype,) = {value.dtype for value in graph.graph.inputs if is_cache_input(value.name or "")}
    file = tmp_path / "llm.onnx"
    if pipeline == "cuda":
        ir.save(graph, file)
    else:
        file = tmp_path / "llm.engine"
        record = dataclasses.replace(BUILD, precision=precision, precisions={"llm": precision})
        (tmp_path / BUILD_NAME).write_text(record.dumps())
    model = bundle.manifest.model
    numbers = 7 * model.num_layers * 2 * model.num_kv_heads * model.head_dim
    assert cache_bytes(file, model, 7) == numbers * dtype.itemsize
    assert dtype.itemsize == (4 if precision == "fp32" else 2)


def test_tables_of_all_positions_are_not_read_in_a_step(tmp_path: Path) -> None:
    arrays = {"w": np.zeros((4, 8), np.float16), "scale": np.zeros(4, np.float32)}
    tables = {name: np.zeros((99, 4), np.float32) for name in ("cos_cache", "sin_cache")}
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in (arrays | tables).items()]
    graph = onnx.helper.make_graph([], "g", [], [], weights)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "llm.onnx")
    assert weight_bytes(tmp_path / "llm.onnx") == 4 * 8 * 2 + 4 * 4


def test_an_engine_without_a_record_is_an_error_of_one_line(nano_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(LiraError, match="holds no engines; build the engines again"):
        cache_bytes(tmp_path / "llm.engine", Bundle.open(nano_bundle).manifest.model, 7)
