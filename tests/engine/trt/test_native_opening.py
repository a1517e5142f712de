"""Engines that do not work here are refused in one line, with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lira_engine.bundle.bundle import Bundle
from lira_engine.cuda.opening import open_driver
from lira_engine.errors import LiraError
from lira_engine.trt.engine import TrtEngine
from lira_engine.trt.log import error_log
from lira_engine.trt.validity import why_invalid

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def bundle(made_bundle: Path) -> Bundle:
    return Bundle.open(made_bundle)


def refusal(installed: Any, bundle: Bundle, file: Path, stage: str, change: Change) -> str:
    """Return the error for an engine of `stage` that `change` has spoilt."""
    installed.engine(file, bundle.manifest, stage, bundle.stage_file(stage))
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    opened = installed.open_llm if stage == "llm" else lambda *a: installed.open_stage(a[0], stage, a[1])
    with pytest.raises(LiraError) as caught:
        opened(bundle.manifest, file)
    text = str(caught.value)
    assert "\n" not in text and str(file) in text and text.endswith("run the build again")
    assert installed.gpu.used == 0
    return text


def tensor(name: str, **facts: Any) -> Change:
    return lambda data: data["tensors"][name].update(facts)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (
            "sefe",
            lambda d: d["tensors"].pop("queries"),
            "tensors queries are in the engine or in the bundle only",
        ),
        ("sefe", tensor("queries", input=False), "queries is an output"),
        ("sefe", tensor("queries", location="HOST"), "queries is in host memory, expected on the device"),
        ("sefe", tensor("queries", dtype="float16"), "queries is float16, expected float32"),
        ("sefe", tensor("queries", shape=[1, 4, 8]), "queries is [1, 4, 8], expected [1, 3, 8]"),
        ("sefe", tensor("queries", shape=[3, 8]), "queries is [3, 8], expected [1, 3, 8]"),
        ("sefe", tensor("features", shape=[1, 14, 8]), "features is [1, 14, 8], expected [1, 'M', 8]"),
        (
            "sefe",
            lambda d: d["profiles"].append(d["profiles"][0]),
            "it has 2 optimization profiles, expected",
        ),
        (
            "sefe",
            lambda d: d["profiles"][0]["features"][2].__setitem__(1, 99),
            "features takes [1, 2, 8] to [1, 99, 8], opt [1, 14, 8], in profile 0, expected [1, 2, 8] to "
            "[1, 26, 8], opt [1, 14, 8];",
        ),
        (
            "sefe",
            lambda d: d["profiles"][0]["features"][0].__setitem__(1, 3),
            "features takes [1, 3, 8] to [1, 26, 8], opt [1, 14, 8], in profile 0, expected [1, 2, 8] to",
        ),
        (
            "sefe",
            lambda d: d["profiles"][0]["features"][1].__setitem__(1, 3),
            "features takes [1, 2, 8] to [1, 26, 8], opt [1, 3, 8], in profile 0, expected [1, 2, 8] to",
        ),
        (
            "llm",
            lambda d: d["profiles"].reverse(),
            "inputs_embeds takes [1, 1, 8] to [1, 1, 8], opt [1, 1, 8], in profile 0",
        ),
        ("llm", tensor("logits", dtype="float16"), "logits is float16, expected float32"),
        ("llm", tensor("key_cache.1", dtype="float16"), "key_cache_out.1 is float32, key_cache.1 is not"),
        ("llm", tensor("key_cache.1", dtype="bool"), "key_cache.1 is bool, expected float32 or float16"),
    ],
)
def test_an_engine_with_other_tensors_or_profiles_is_refused(
    installed: Any, bundle: Bundle, tmp_path: Path, stage: str, change: Change, message: str
) -> None:
    text = refusal(installed, bundle, tmp_path / "e.engine", stage, change)
    assert f"is not an engine of this bundle's {stage}: {message}" in text


def test_a_cache_that_is_not_updated_in_place_is_refused(rtx: Any, bundle: Bundle, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["tensors"]["value_cache_out.0"]["alias"] = None

    text = refusal(rtx, bundle, tmp_path / "e.engine", "llm", change)
    assert "value_cache_out.0 does not share the memory of its input" in text


def test_a_size_that_never_varies_may_be_fixed(installed: Any, bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "e.engine"
    installed.engine(file, bundle.manifest, "semantic_encoder", bundle.stage_file("semantic_encoder"))
    data = json.loads(file.read_text())
    for tensor in data["tensors"].values():
        tensor["shape"][0] = 1
    file.write_text(json.dumps(data))
    pixels = bundle.check_vectors("semantic_encoder").inputs["pixel_values"]
    with installed.open_stage(bundle.manifest, "semantic_encoder", file) as runner:
        assert runner.run({"pixel_values": pixels[:1]})["features"].shape == (1, 2, 8)
        with pytest.raises(
            LiraError, match=r"pixel_values is \[2, 3, 4, 4\], the engine takes \[1, 3, 4, 4\]"
        ):
            runner.run({"pixel_values": pixels})


def test_a_file_that_tensorrt_does_not_load_is_refused(
    installed: Any, bundle: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "sefe.engine"
    file.write_bytes(b"ftrt of another version")
    with pytest.raises(LiraError) as caught:
        installed.open_stage(bundle.manifest, "sefe", file)
    cause = "it was built for another GPU or by another version"
    if installed.target == "tensorrt-rtx":  # it can be asked
        cause = "it is not an engine, or damaged"
    assert str(caught.value) == (
        f"{file} does not load with {installed.flavour.name} on Stand-in sm_87 (Serialization assertion "
        f"magicTag failed): {cause}; run the build again"
    )


@pytest.mark.parametrize(
    ("bits", "cause"),
    [
        (["VERSION_MISMATCH"], "another version built it; run the build again"),
        (["UNSUPPORTED_CC"], "it was not built for this GPU's compute capability; run the build again"),
        (["MALFORMED_ENGINE"], "it is not an engine, or damaged; run the build again"),
        (
            ["OLD_CUDA_DRIVER"],
            "the driver is too old for it; update NVIDIA's driver, `lira-edge doctor` names",
        ),
        (["OLD_CUDA_RUNTIME"], "the CUDA runtime is too old for it; update NVIDIA's driver"),
        (["INSUFFICIENT_GPU_MEMORY"], "the GPU has too little free memory; close other programs on it"),
        (["CUDA_ERROR"], "CUDA does not work here; install NVIDIA's driver again"),
        (["UNSUPPORTED_CC", "OLD_CUDA_DRIVER"], "the driver is too old for it; update NVIDIA's driver"),
    ],
)
def test_tensorrt_for_rtx_says_why_it_does_not_load_an_engine(
    rtx: Any, bundle: Bundle, tmp_path: Path, bits: list[str], cause: str
) -> None:
    file = rtx.engine(tmp_path / "sefe.engine", bundle.manifest, "sefe", bundle.stage_file("sefe"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "invalid": bits}))
    with pytest.raises(LiraError) as caught:
        rtx.open_stage(bundle.manifest, "sefe", file)
    assert f"does not load with tensorrt-rtx 1.7.1 on Stand-in sm_87 (Error Code 1): {cause}" in str(
        caught.value
    )


def test_a_cause_that_it_does_not_tell_is_guessed(rtx: Any, bundle: Bundle, tmp_path: Path) -> None:
    """Without a GPU it sets no bit; and a later release may have other ones."""
    assert why_invalid(rtx.flavour, rtx.trt.Runtime(error_log(rtx.flavour).logger), b"{}", "again") == (
        "it was built for another GPU or by another version; again"
    )


def test_a_release_that_lacks_a_cause_tells_the_others() -> None:
    bits = SimpleNamespace(__members__={"VERSION_MISMATCH": 4})
    flavour: Any = SimpleNamespace(module=SimpleNamespace(EngineInvalidityDiagnostics=bits))
    for set_, told in ((4, "another version built it; again"), (8, "it was built for another GPU or by")):
        runtime = SimpleNamespace(get_engine_validity=lambda plan, set_=set_: (None, set_))
        assert why_invalid(flavour, runtime, b"{}", "again").startswith(told)


@pytest.mark.parametrize("stage", ["sefe", "llm"])
def test_a_refused_profile_is_a_one_line_error(
    installed: Any, bundle: Bundle, tmp_path: Path, stage: str
) -> None:
    """TensorRT says so by what it returns, or raises RuntimeError."""
    text = refusal(installed, bundle, tmp_path / "e.engine", stage, lambda d: d.update(busy=True))
    assert "does not take optimization profile 0: the profile is in use" in text
    file = installed.engine(tmp_path / "e.engine", bundle.manifest, stage, bundle.stage_file(stage))
    with installed.driver.current():
        engine = TrtEngine(file, installed.flavour, installed.driver, "again")
        with pytest.raises(LiraError, match=r"does not take optimization profile 9: .*; again$"):
            engine.new_context(9, installed.driver.stream())


def test_a_refused_context_is_a_one_line_error(installed: Any, bundle: Bundle, tmp_path: Path) -> None:
    text = refusal(installed, bundle, tmp_path / "e.engine", "sefe", lambda d: d.update(refuses=True))
    assert "makes no execution context on Stand-in sm_87 (out of memory): memory is short" in text


def test_a_process_has_one_driver_and_one_log(installed: Any, bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT keeps what it was given first."""
    assert open_driver(installed.driver.name.split()[0]) is installed.driver
    file = installed.engine(tmp_path / "sefe.engine", bundle.manifest, "sefe", bundle.stage_file("sefe"))
    with (
        installed.open_stage(bundle.manifest, "sefe", file) as first,
        installed.open_stage(bundle.manifest, "sefe", file) as second,
    ):
        assert first._engine._log is second._engine._log is error_log(installed.flavour)


def test_the_log_tells_an_error_once(installed: Any) -> None:
    log = error_log(installed.flavour)
    log.logger.log(installed.trt.ILogger.ERROR, "one\n  line")
    log.logger.log(installed.trt.ILogger.WARNING, "a warning")
    assert log.reason() == "one line"
    assert log.reason() == "it does not say why"
