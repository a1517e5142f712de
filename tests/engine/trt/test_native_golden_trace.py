"""The recorded ILVC traces through the TensorRT runners, on the stand-ins: token for token, mask for mask.

Tests and tolerances are those of the portable graphs (tests/runtime/test_golden_trace.py).
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import STAGES, FileEntry
from lira_engine.cuda.driver import check_driver
from lira_engine.engines.fingerprint import lowering_fingerprint
from lira_engine.engines.origin import remember_built
from lira_engine.engines.record import BUILD_NAME, Build, read_build
from lira_engine.errors import LiraError
from lira_engine.open import open_engines
from lira_engine.targets import target_named
from lira_engine.trt.llm import TrtLlm
from lira_engine.trt.stage import TrtStage, TrtTensor
from lira_runtime import Lira

PORTABLE = Path(__file__).parents[2] / "runtime" / "test_golden_trace.py"


def _load(path: Path) -> ModuleType:
    name = f"portable_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_portable: Any = _load(PORTABLE)
pytest_generate_tests = _portable.pytest_generate_tests
replay = _portable.replay
test_golden_trace_tokens_and_positions = _portable.test_golden_trace_tokens_and_positions
test_golden_trace_prefix_hidden_states_and_logits = (
    _portable.test_golden_trace_prefix_hidden_states_and_logits
)
test_golden_trace_masks = _portable.test_golden_trace_masks
test_golden_trace_regions = _portable.test_golden_trace_regions


def write_engines(installed: Any, bundle: Bundle, **options: Any) -> None:
    """Write an engine folder for the stand-in, as a build does."""
    folder = bundle.engine_folder(installed.target, "fp32")
    folder.mkdir(parents=True, exist_ok=True)
    target = target_named(installed.target)
    files = [folder / target.file(stage) for stage in STAGES]
    for stage, file in zip(STAGES, files, strict=True):
        installed.engine(file, bundle.manifest, stage, bundle.stage_file(stage))
    record = Build(
        lira_edge_version=metadata.version("lira-edge"),
        lowering=lowering_fingerprint(target.sources),
        target=installed.target,
        precision="fp32",
        options=target.recorded_options(target.given_options(options, "fp32"), "fp32"),
        machine=target.machine(),
        tools=target.tools(),
        sources={n: bundle.manifest.files[n].sha256 for s in STAGES for n in bundle.stage_sources(s)},
        files={file.name: FileEntry(sha256_of(file), file.stat().st_size) for file in files},
        precisions=dict.fromkeys(STAGES, "fp32"),
        speedups={},
        errors={},
        seconds={},
    )
    (folder / BUILD_NAME).write_text(record.dumps())
    remember_built(read_build(folder, ""))


@pytest.fixture(params=["rtx", "thor small", "orin", "orin small"])
def installed(request: pytest.FixtureRequest, installed_as: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The golden sequences fit into one prefill chunk; "small" cuts them into chunks of five rows."""
    flavour, _, small = request.param.partition(" ")
    if small:
        monkeypatch.setattr("lira_engine.trt.llm.PREFILL_ROWS", 5)
    return installed_as(flavour)


@pytest.fixture
def lira(installed: Any, golden_bundle: Path) -> Iterator[Lira]:
    write_engines(installed, Bundle.open(golden_bundle))
    name = check_driver(installed.driver.name.split()[0])
    with Lira.open(
        golden_bundle, installed.target, "fp32", tokenizer=_portable.Numbers(), unverified=True, driver=name
    ) as opened:
        assert isinstance(opened.engines.llm, TrtLlm)
        assert opened.engines.cuda_calls == installed.driver.name
        yield opened
    assert installed.gpu.used == 0


def test_caches_and_features_never_leave_the_device(lira: Lira, installed: Any, replay: Any) -> None:
    """The copies have all logits and masks, but no cache and no other output for a stage."""
    model = lira.manifest.model
    cache = 4 * model.num_kv_heads * model.context_length * model.head_dim
    sizes = {size for _, size in installed.gpu.copies}
    assert cache not in sizes
    logits = [size for way, size in installed.gpu.copies if (way, size) == ("out", 4 * model.vocab_size)]
    assert len(logits) >= len(replay.steps)
    masks = 4 * _elements(lira, "pixel_decoder", "mask_logits")
    assert (masks in sizes) == bool(replay.masks)
    # What one stage makes for another one stays on the device.
    names = lira.manifest.stages["pixel_encoder"].outputs.keys() - {"query_valid"}
    stay = {4 * _elements(lira, "pixel_encoder", name) for name in names} - {masks}
    assert len(stay) > 3
    assert not sizes & stay


def test_the_encoders_run_concurrently(lira: Lira, installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixel encoder still runs while the tiles' features are fetched."""
    fetch, start, fetched = TrtStage.fetch, TrtStage.start, []
    started = []

    def noting(stage: TrtStage, tensor: TrtTensor) -> np.ndarray:
        queue = installed.gpu.stream_of(lira.engines.pixel_encoder._stream.handle).queue  # type: ignore
        fetched.append((stage.name, bool(queue)))
        return fetch(stage, tensor)

    def starting(stage: TrtStage, feeds: Any) -> Any:
        started.append((stage.name, len(fetched)))
        return start(stage, feeds)

    monkeypatch.setattr(TrtStage, "fetch", noting)
    monkeypatch.setattr(TrtStage, "start", starting)
    lira.look(np.full((20, 40, 3), 200, np.uint8))
    *tiles, pixel = [entry for entry in fetched if entry[0] != "sefe"]
    assert len(tiles) > 1 and set(tiles) == {("semantic_encoder", True)}
    assert pixel == ("pixel_encoder", True)
    # All passes are enqueued before the first result is fetched.
    assert started[:-1] == [("pixel_encoder", 0), *[("semantic_encoder", 0)] * len(tiles)]


@pytest.mark.parametrize("flavour, sampling", [("rtx", "gathers"), ("orin", "gathers"), ("orin", "plugin")])
def test_plugins_are_loaded_before_engines_that_use_them(
    installed_as: Any, golden_bundle: Path, flavour: str, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = installed_as(flavour)
    given = {"sampling": sampling} if flavour == "orin" else {}
    write_engines(installed, Bundle.open(golden_bundle), **given)
    with open_engines(golden_bundle, installed.target, "fp32", unverified=True):
        assert installed.trt.plugins == ([0] if sampling == "plugin" else [])
        assert len(installed.trt.engines) == len(STAGES)
    if sampling == "plugin":
        monkeypatch.setattr(installed.trt, "init_libnvinfer_plugins", lambda logger, namespace: False)
        with pytest.raises(LiraError, match=r"not load its plugins .*: run `lira-edge build .* --force`"):
            open_engines(golden_bundle, installed.target, "fp32", unverified=True)
    assert installed.gpu.used == 0


def _elements(lira: Lira, stage: str, output: str) -> int:
    return math.prod(size for size in lira.manifest.stages[stage].outputs[output].shape)  # type: ignore[misc]
