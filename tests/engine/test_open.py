"""Stages are opened side by side or one after the other; if one fails, none stays open."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from lira_engine import open as opening
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.runner import Closing
from lira_engine.errors import LiraError
from lira_engine.open import open_engines, open_files, open_llm
from lira_engine.targets import PORTABLE, TARGETS
from lira_engine.trust.known_builds import KnownBuild

FILES = {stage: Path(f"{stage}.onnx") for stage in STAGES}


class Opened(Closing):
    def __init__(self, opener: Opener, stage: str) -> None:
        self.opener, self.stage = opener, stage

    def close(self) -> None:
        self.opener.closed.append(self.stage)


class Opener:
    """Opens nothing. `broken`: the stage that fails. `met`: what the first stage and the language model wait
    for."""

    draft_costs = ()
    cuda_calls = ""
    tiles_at_once = 1

    def __init__(self, broken: str = "", met: threading.Barrier | None = None) -> None:
        self.broken, self.met = broken, met
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.threads: set[str] = set()

    def stage(self, name: str, file: Path) -> Opened:
        assert file == FILES[name]
        if self.met is not None and name in ("llm", next(s for s in STAGES if s != "llm")):
            self.met.wait(timeout=60)
        self.threads.add(threading.current_thread().name)
        if name == self.broken:
            raise LiraError(f"{name} is damaged")
        self.opened.append(name)
        return Opened(self, name)

    def llm(self, file: Path) -> Opened:
        return self.stage("llm", file)


def test_the_language_model_opens_beside_the_other_stages() -> None:
    opener = Opener(met=threading.Barrier(2))  # neither passes before the other has begun
    with open_files(opener, FILES, "cpu", "fp32", beside=True) as engines:  # type: ignore[arg-type]
        assert isinstance(engines.llm, Opened) and engines.llm.stage == "llm"
        assert sorted(opener.opened) == sorted(STAGES) and len(opener.threads) == 2
        assert not opener.closed
    assert sorted(opener.closed) == sorted(STAGES)


def test_stages_of_a_gpu_open_in_the_threads_own_context() -> None:
    opener = Opener()
    open_files(opener, FILES, "tensorrt", "fp16")  # type: ignore[arg-type]
    assert opener.threads == {threading.current_thread().name} and opener.opened[-1] == "llm"


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("broken", STAGES)
def test_none_stays_open_if_one_cannot_be_opened(broken: str, beside: bool) -> None:
    opener = Opener(broken)
    with pytest.raises(LiraError, match=f"{broken} is damaged"):
        open_files(opener, FILES, "cpu", "fp32", beside=beside)  # type: ignore[arg-type]
    assert sorted(opener.closed) == sorted(opener.opened)


@pytest.mark.parametrize("precision, costs", [("fp32", ()), ("fp16", (0.5,)), ("int4", (0.5,))])
def test_engines_in_fp32_never_read_ahead(precision: str, costs: tuple[float, ...]) -> None:
    opener = Opener()
    opener.draft_costs = (0.5,)  # type: ignore[assignment]
    engines = open_files(opener, FILES, "cpu", precision, remark="kept by --force")  # type: ignore[arg-type]
    assert (engines.draft_costs, engines.remark) == (costs, "kept by --force")


def test_options_reach_the_opener_and_the_check_of_its_files(
    made_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, tuple[object, ...]] = {}

    class Target:
        name, on_gpu, file = "cpu", False, staticmethod("{}.onnx".format)

        def with_driver(self, driver: str) -> Target:
            return self

        def opener(self, *options: object) -> Opener:
            given["opener"] = options
            opener = Opener()
            monkeypatch.setattr(opener, "llm", lambda file: "the language model")
            return opener

    def usable_build(*options: object) -> object:
        given["usable_build"] = options
        return SimpleNamespace(
            target="cpu",
            precision="int4",
            settled={"tiles": 1},
            wrong={},
            verified=None,
            judgement=None,
            known=KnownBuild(built="2026-11-28"),
        )

    monkeypatch.setattr(opening, "target_named", lambda name: Target())
    monkeypatch.setattr(opening, "usable_build", usable_build)
    bundle = Bundle.open(made_bundle)
    assert open_llm(bundle, "cpu", "int4", 3) == "the language model"
    assert given["opener"][1:] == ("int4", {"tiles": 1}, 3)
    assert given["usable_build"][2:] == ("int4",)


@pytest.mark.parametrize("name", ["cpu", "cuda", "portable"])
def test_a_driver_is_refused_where_the_inference_library_has_its_own(made_bundle: Path, name: str) -> None:
    with pytest.raises(LiraError, match=rf"^target {name} takes no driver, .*: leave --driver out$"):
        open_engines(made_bundle, name, driver="cuda-bindings")
    with pytest.raises(LiraError, match="the driver is 'cupy'; expected auto, pycuda or cuda-bindings"):
        open_engines(made_bundle, name, driver="cupy")  # type: ignore[arg-type]
    target = PORTABLE if name == "portable" else TARGETS[name]
    assert target.with_driver("auto") is target


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_target_of_tensorrt_takes_a_driver_and_stays_what_it_is(name: str) -> None:
    chosen = TARGETS[name].with_driver("cuda-bindings")
    assert (chosen.name, chosen.driver, TARGETS[name].driver) == (name, "cuda-bindings", "auto")  # type: ignore
    with pytest.raises(LiraError, match="the driver is 'cupy'"):
        TARGETS[name].with_driver("cupy")  # type: ignore[arg-type]
