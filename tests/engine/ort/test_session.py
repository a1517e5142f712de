"""A stage in ONNX Runtime accepts the inputs of its spec and nothing else."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import GraphOptimizationLevel
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from lira_engine import Bundle, ContextFull, LiraError
from lira_engine.bundle.manifest import TensorSpec
from lira_engine.engines.runner import check_room
from lira_engine.errors import Closed, OutOfMemory
from lira_engine.ort.session import open_session
from lira_engine.ort.stage import OrtStage
from lira_engine.system.cores import default_threads


@pytest.fixture
def bundle(made_bundle: Path) -> Bundle:
    return Bundle.open(made_bundle)


def test_stages_reproduce_their_check_vectors(bundle: Bundle) -> None:
    for stage in ("semantic_encoder", "pixel_encoder", "sefe", "pixel_decoder"):
        vectors = bundle.check_vectors(stage)
        with open_stage(bundle, stage) as runner:
            assert runner.name == stage
            found = runner.run(vectors.inputs)
        assert found.keys() == vectors.outputs.keys()
        for name, array in found.items():
            np.testing.assert_allclose(array, vectors.outputs[name], rtol=4e-6, atol=4e-6)
        with pytest.raises(ValueError, match="closed"):
            runner.run(vectors.inputs)


def test_a_session_has_a_thread_for_each_fast_core(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bundle.stage_file("sefe")

    def threads(asked: int | None) -> int:
        return int(open_session(file, asked).get_session_options().intra_op_num_threads)

    assert threads(None) == (default_threads() or 0)
    monkeypatch.setattr("lira_engine.ort.session.default_threads", lambda: 3)
    assert (threads(None), threads(1)) == (3, 1)


def test_every_option_reaches_the_session(bundle: Bundle) -> None:
    file = bundle.stage_file("sefe")
    plain, other = (
        open_session(file, 1, **options).get_session_options()
        for options in ({}, {"prepack": False, "reuse": True, "fuse": False})
    )
    assert (plain.enable_mem_reuse, other.enable_mem_reuse) == (False, True)
    assert not plain.enable_mem_pattern and not other.enable_mem_pattern
    assert plain.graph_optimization_level == GraphOptimizationLevel.ORT_ENABLE_ALL
    assert other.graph_optimization_level == GraphOptimizationLevel.ORT_DISABLE_ALL
    assert other.get_session_config_entry("session.disable_prepacking") == "1"
    with pytest.raises(RuntimeError, match="does not have configuration"):
        plain.get_session_config_entry("session.disable_prepacking")
    # int4 weights behind DequantizeLinear are multiplied in fp32.
    assert plain.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "1"


def test_a_pass_keeps_the_feeds_that_it_was_started_with(bundle: Bundle) -> None:
    """Whoever starts it may go on with the same dictionary."""
    feeds = dict(bundle.check_vectors("sefe").inputs)
    with open_stage(bundle, "sefe") as runner:
        started = runner.start(feeds)
        feeds["queries"] = np.zeros_like(feeds["queries"])
        for name, array in bundle.check_vectors("sefe").outputs.items():
            np.testing.assert_allclose(started.numpy(name), array, rtol=1e-5, atol=1e-5)


def open_stage(bundle: Bundle, stage: str) -> OrtStage:
    return OrtStage(stage, bundle.stage_file(stage), bundle.manifest.stages[stage], threads=1)


def test_a_pass_runs_once_when_its_first_result_is_needed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    inner = OrtStage._run
    monkeypatch.setattr(OrtStage, "_run", lambda self, *given: runs.append(self.name) or inner(self, *given))
    image = bundle.check_vectors("pixel_encoder")
    with open_stage(bundle, "pixel_encoder") as encoder, open_stage(bundle, "pixel_decoder") as decoder:
        looked = encoder.start(image.inputs)
        features = looked.outputs["mask_features"]
        assert (features.shape, features.dtype) == ((1, 4, 8, 8), np.float32)
        masks = [
            decoder.start({"hidden_states": np.full((1, 8), i, np.float32), "mask_features": features})
            for i in range(3)
        ]
        assert runs == []
        found = [mask.numpy("mask_logits") for mask in masks[:2]]
        assert runs == ["pixel_decoder", "pixel_encoder", "pixel_decoder"]  # the third mask is not needed
        for i, mask in enumerate(found):
            feeds = {
                "hidden_states": np.full((1, 8), i, np.float32),
                "mask_features": image.outputs["mask_features"],
            }
            np.testing.assert_allclose(mask, decoder.run(feeds)["mask_logits"], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(masks[0].numpy("mask_logits"), found[0])
        assert runs.count("pixel_encoder") == 1
    with pytest.raises(Closed, match="pixel_decoder is closed"):
        masks[2].numpy("mask_logits")
    with (
        open_stage(bundle, "pixel_decoder") as decoder,
        pytest.raises(LiraError, match=r"input hidden_states is float32 \[1, 4, 8, 8\], expected float32"),
    ):
        decoder.start({"hidden_states": features, "mask_features": features})


def test_threads_that_need_a_result_run_the_pass_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0
    inner = OrtStage._run

    def slowly(self: OrtStage, *given: Any) -> Any:
        nonlocal runs
        runs += 1
        time.sleep(0.05)
        return inner(self, *given)

    monkeypatch.setattr(OrtStage, "_run", slowly)
    with open_stage(bundle, "pixel_encoder") as encoder, ThreadPoolExecutor(4) as threads:
        begun = encoder.start(bundle.check_vectors("pixel_encoder").inputs)
        found = list(threads.map(lambda _: begun.numpy("queries"), range(4)))
    assert runs == 1
    for array in found:
        np.testing.assert_array_equal(array, found[0])
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "sefe: got inputs none; expected features, pixel_features, queries"),
        ({"features": (1, 5, 7)}, "input features is float32 [1, 5, 7], expected float32 [1, M, 8] with M=5"),
        ({"features": (5, 8)}, "input features is float32 [5, 8], expected float32 [1, M, 8]"),
        ({"features": np.float64}, "input features is float64 [1, 5, 8], expected float32"),
    ],
)
def test_an_error_names_the_wrong_input(bundle: Bundle, feeds: dict[str, object], message: str) -> None:
    given = dict(bundle.check_vectors("sefe").inputs) if feeds else {}
    for name, change in feeds.items():
        if isinstance(change, tuple):
            given[name] = np.zeros(change, np.float32)
        else:
            given[name] = given[name].astype(np.float64)
    with (
        open_stage(bundle, "sefe") as runner,
        pytest.raises(LiraError, match=re.escape(message)),
    ):
        runner.run(given)


def test_a_file_without_the_manifests_tensors_is_refused(bundle: Bundle) -> None:
    spec = bundle.manifest.stages["sefe"]
    renamed = dataclasses.replace(spec, inputs={"other": TensorSpec("float32", (1,))})
    with pytest.raises(LiraError, match=r"has inputs .*'features'.*, expected \['other'\]"):
        OrtStage("sefe", bundle.stage_file("sefe"), renamed)
    more = dataclasses.replace(spec, outputs={**spec.outputs, "more": TensorSpec("float32", (1,))})
    with pytest.raises(LiraError, match=r"lacks outputs \['more'\]"):
        OrtStage("sefe", bundle.stage_file("sefe"), more)


@pytest.mark.parametrize(
    ("version", "says"),
    [((1, 24), r"expected 1\.25 .*lira-edge build"), ((1, 25), "it is damaged: build the engines again")],
)
def test_a_graph_with_an_unknown_operator_is_an_error_of_one_line(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], says: str
) -> None:
    """Only an older ONNX Runtime may lack it."""
    monkeypatch.setattr("lira_engine.ort.session.version", lambda: version)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"])], "g", [value], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(LiraError, match=rf"cannot load .*a\.onnx: {says}.*Nonsense") as caught:
        OrtStage("sefe", tmp_path / "a.onnx", bundle.manifest.stages["sefe"])
    assert "\n" not in str(caught.value)


def test_more_rows_than_a_cache_has_left_are_refused() -> None:
    check_room(10, 12, 2)
    with pytest.raises(ContextFull, match="10 of 12 positions are taken and 3 more are needed"):
        check_room(10, 12, 3)


def test_refused_memory_when_a_file_is_opened_is_an_error(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = {
        "std::bad_alloc": (RuntimeException, "out of memory"),
        "PosixThread pthread_create failed, error code: 11": (RuntimeError, "the system refused a thread"),
    }
    spec = Bundle.open(bundle_path).manifest.stages["sefe"]
    for text, (kind, line) in refusals.items():

        def refuse(*_: object, text: str = text, kind: type[Exception] = kind, **__: object) -> None:
            raise kind(text)

        monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
        with pytest.raises(OutOfMemory, match=f"^{line}") as caught:
            OrtStage("sefe", bundle_path / spec.file, spec)
        assert "cannot load" not in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="checks Linux's limits")
def test_refused_address_space_of_threads_is_an_error(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(*given: object) -> None:
        asked.append(given)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("mmap.mmap", refuse)
    spec = Bundle.open(bundle_path).manifest.stages["sefe"]
    with pytest.raises(OutOfMemory, match=r"address space of 3 threads \(144 MiB\): take --threads 1"):
        OrtStage("sefe", bundle_path / spec.file, spec, threads=3)
    assert asked == [(-1, 144 << 20)]
    OrtStage("sefe", bundle_path / spec.file, spec, threads=1).close()
