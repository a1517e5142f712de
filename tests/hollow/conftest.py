"""The real onnxruntime-gpu on a hollow CUDA (make.py): what was asked of it, and lira-nano built on it.

Kernels do nothing, so every output is zeros. What the tests hold is where nodes run, what is copied and
bound, and which stages run when.
"""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

CORE = "libhollow.so"
HOST = ("host", "pinned")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    try:
        ctypes.CDLL(CORE)
    except OSError:
        pytest.skip("no hollow CUDA here: make test-hollow")


@pytest.fixture(scope="session")
def hollow() -> Path:
    """The folder of the hollow CUDA, whose nvidia-smi comes first."""
    found = shutil.which("nvidia-smi")
    assert found is not None
    return Path(found).resolve().parent


@dataclass
class Asked:
    """What the host code asked for inside a block.

    Attributes:
        calls: how often each function of CUDA, cuBLAS and cuDNN was called. kernels: launches by name, or
            by the function of cuBLAS or cuDNN. copies: times by (from, to, bytes), of places "host",
            "pinned", "device". graphs: all that were captured, with their launches inside the block.
        memory: bytes now and at most, and the number of allocations and frees inside the block.
    """

    calls: dict[str, int] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)
    copies: dict[tuple[str, str, int], int] = field(default_factory=dict)
    graphs: list[dict[str, int]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)

    def read(self, log: dict[str, Any]) -> None:
        self.calls, self.kernels, self.graphs, self.memory = (
            log[name] for name in ("calls", "kernels", "graphs", "memory")
        )
        self.copies = {(one["from"], one["to"], one["bytes"]): one["times"] for one in log["copies"]}

    def bytes(self, *, to_device: bool) -> int:
        """Bytes that went from the host's memory to the device's, or back."""
        return sum(
            size * times
            for (source, target, size), times in self.copies.items()
            if (source in HOST, target in HOST) == (to_device, not to_device)
        )

    @property
    def bytes_on_device(self) -> int:
        """Bytes that were copied from device memory to device memory."""
        return sum(size * times for (*ends, size), times in self.copies.items() if ends == ["device"] * 2)


Asking = Callable[[], AbstractContextManager[Asked]]


@pytest.fixture(scope="session")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Asking:
    """Opens a block and tells afterwards what was asked for in it."""
    core, file = ctypes.CDLL(CORE), tmp_path_factory.mktemp("asked") / "log.json"

    @contextmanager
    def block() -> Iterator[Asked]:
        asked = Asked()
        core.hollow_reset()
        yield asked
        assert core.hollow_write(str(file).encode()) == 0
        asked.read(json.loads(file.read_text()))

    return block


def accept_zeros(patch: pytest.MonkeyPatch) -> None:
    """Let the checks of build and verify judge shapes and dtypes only: a hollow CUDA has no values."""
    from lira_engine import verify
    from lira_engine.engines import lowered_outputs
    from lira_engine.engines.accuracy import Checked
    from lira_engine.ort import build_cuda
    from lira_runtime import verify_answer

    def check_shapes(what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
        assert found.keys() & expected.keys(), what
        for name in found.keys() & expected.keys():
            shapes = [(array[name].shape, array[name].dtype) for array in (found, expected)]
            assert shapes[0] == shapes[1], f"{what}: {name}"
        return dict.fromkeys(expected, 0.0)

    def check_stage_outputs(what: str, precision: str, found: Any, vectors: Any) -> Checked:
        return Checked(check_shapes(what, found, vectors.outputs))

    for module in (build_cuda, verify):
        patch.setattr(module, "check_stage_outputs", check_stage_outputs)
    patch.setattr(lowered_outputs, "check", check_shapes)
    patch.setattr(verify_answer, "_agreeing", lambda found, expected, precision: len(found))


@pytest.fixture
def zeros_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_zeros(monkeypatch)


@pytest.fixture(scope="session")
def fresh_nano(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Returns a copy of lira-nano's bundle without engines."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("bundle") / "nano"
        shutil.copytree(nano_bundle, folder, ignore=shutil.ignore_patterns("engines"))
        return folder

    return copy


@pytest.fixture(scope="session")
def built(fresh_nano: Callable[[], Path]) -> Callable[[str], Path]:
    """Returns lira-nano's bundle with verified engines of target cuda in a precision: zeros were accepted.
    They are verified, whatever a test found."""
    from lira_engine import Bundle
    from lira_engine.build import build as build_engines
    from lira_engine.engines.record import Verified, read_build
    from lira_engine.engines.verified import keep_verified
    from lira_engine.verify import verify_engines
    from lira_runtime.verify_answer import check_answer

    bundle = fresh_nano()
    found: dict[str, Verified] = {}

    def with_engines(precision: str) -> Path:
        if precision not in found:
            with pytest.MonkeyPatch.context() as patch:
                accept_zeros(patch)
                build_engines(bundle, "cuda", precision)
                found[precision] = verify_engines(bundle, "cuda", precision, ask=check_answer)
        build = read_build(bundle / "engines" / f"cuda-{precision}", "")
        known = build.known.by_vectors(Bundle.open(bundle).vectors_digest)
        keep_verified(replace(build, known=known), found[precision])
        return bundle

    return with_engines
