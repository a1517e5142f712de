"""The stand-ins notice misuse: what the runners must not do is done here, once on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine.bundle.bundle import Bundle
from lira_engine.cuda.driver import Driver
from lira_engine.errors import LiraError
from lira_engine.trt.engine import TrtEngine


@pytest.fixture
def current(rtx: Any) -> Iterator[Any]:
    with rtx.driver.current():
        yield rtx


def class_of(kind: str, driver: Driver) -> type:
    """Return the driver's class of streams or events, or its own."""
    if kind == "driver":
        return type(driver)
    with driver.current():
        return type(driver.stream() if kind == "stream" else driver.event())


class Pass:
    """The pixel decoder's engine with a buffer for each tensor, to be driven by hand."""

    def __init__(self, installed: Any, bundle: Bundle, file: Path) -> None:
        self.driver = installed.driver
        self.feeds = bundle.check_vectors("pixel_decoder").inputs
        self.wanted = bundle.check_vectors("pixel_decoder").outputs["mask_logits"]
        name = "pixel_decoder"
        installed.engine(file, bundle.manifest, name, bundle.stage_file(name))
        self.engine = TrtEngine(file, installed.flavour, self.driver, "")
        self.stream = self.driver.stream()
        self.context = self.engine.new_context(0, self.stream)
        arrays = {**self.feeds, "mask_logits": self.wanted}
        self.buffers = {key: self.driver.allocate(array.nbytes) for key, array in arrays.items()}

    def bind(self, *left_out: str) -> None:
        for name, buffer in self.buffers.items():
            if name not in left_out:
                self.context.bind(name, buffer.address)

    def copy_in(self) -> None:
        for name, array in self.feeds.items():
            self.driver.copy_in(self.buffers[name], array, self.stream)

    def copy_out(self, stream: Any = None) -> np.ndarray:
        found = np.empty_like(self.wanted)
        self.driver.copy_out(found, self.buffers["mask_logits"], stream or self.stream)
        return found


@pytest.fixture
def one_pass(current: Any, made_bundle: Path, tmp_path: Path) -> Pass:
    return Pass(current, Bundle.open(made_bundle), tmp_path / "pixel_decoder.engine")


def test_a_correct_pass_has_its_answer_after_the_wait(one_pass: Pass) -> None:
    one_pass.bind()
    one_pass.copy_in()
    one_pass.context.execute(one_pass.stream)
    found = one_pass.copy_out()
    assert np.isnan(found).all()  # not yet
    one_pass.stream.synchronize()
    np.testing.assert_allclose(found, one_pass.wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["hidden_states", "mask_features", "mask_logits"])
def test_a_missing_address_is_refused(one_pass: Pass, name: str) -> None:
    one_pass.bind(name)
    with pytest.raises(LiraError, match=f"no address is set for {name}"):
        one_pass.context.execute(one_pass.stream)


def test_a_wrong_shape_is_refused(one_pass: Pass) -> None:
    with pytest.raises(LiraError, match=r"input hidden_states is \[2, 8\], the engine takes \[1, 8\] to"):
        one_pass.context.set_shape("hidden_states", (2, 8))


def test_a_small_buffer_is_misuse(current: Any, one_pass: Pass) -> None:
    one_pass.buffers["mask_logits"] = one_pass.driver.allocate(one_pass.wanted.nbytes - 4)
    one_pass.bind()
    with pytest.raises(current.misuse, match=r"mask_logits: 256 bytes at .* go beyond 252"):
        one_pass.context.execute(one_pass.stream)
    with pytest.raises(current.misuse, match="copy out: 256 bytes"):
        one_pass.copy_out()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_freed_buffer_is_misuse(current: Any, one_pass: Pass, when: str) -> None:
    one_pass.bind()
    one_pass.copy_in()
    if when == "meanwhile":
        one_pass.context.execute(one_pass.stream)
    one_pass.buffers["mask_features"].free()
    with pytest.raises(current.misuse, match="is no memory, or was freed"):
        one_pass.context.execute(one_pass.stream)
        one_pass.stream.synchronize()
    if when == "meanwhile":
        with pytest.raises(current.misuse, match="is no memory, or was freed"):
            one_pass.stream.synchronize()
    with pytest.raises(current.misuse, match="freed twice"):
        one_pass.buffers["mask_features"].free()


def test_a_copy_takes_later_values_and_a_dead_array_is_misuse(current: Any, one_pass: Pass) -> None:
    one_pass.bind()
    one_pass.feeds = {name: array.copy() for name, array in one_pass.feeds.items()}
    one_pass.copy_in()
    one_pass.feeds["hidden_states"] += 1
    one_pass.context.execute(one_pass.stream)
    found = one_pass.copy_out()
    one_pass.stream.synchronize()
    assert (abs(found - one_pass.wanted) > 1).all()
    one_pass.copy_in()
    one_pass.feeds = {}
    with pytest.raises(current.misuse, match="died before the copy"):
        one_pass.stream.synchronize()


def test_streams_do_not_wait_for_each_other(one_pass: Pass) -> None:
    one_pass.bind()
    one_pass.copy_in()
    one_pass.context.execute(one_pass.stream)
    other = one_pass.driver.stream()
    found = one_pass.copy_out(other)
    other.synchronize()
    assert np.isnan(found).all()


def test_an_event_waits_for_the_work_before_it(one_pass: Pass) -> None:
    one_pass.bind()
    one_pass.copy_in()
    one_pass.context.execute(one_pass.stream)
    found = one_pass.copy_out()
    event = one_pass.driver.event()
    event.synchronize()  # nothing recorded
    assert np.isnan(found).all()
    event.record(one_pass.stream)
    later = one_pass.copy_out()
    event.synchronize()
    np.testing.assert_allclose(found, one_pass.wanted, rtol=1e-6)
    assert np.isnan(later).all()


def test_a_thread_without_the_context_is_misuse(rtx: Any) -> None:
    with pytest.raises(rtx.misuse, match="no context is current"):
        rtx.driver.allocate(1)


@pytest.mark.parametrize(
    ("flavour", "sets", "message"),
    [
        ("rtx", 2, "key_cache_out.0 must share the memory"),
        ("orin", 1, "key_cache_out.0 overlaps key_cache.0"),
    ],
)
def test_caches_bound_for_the_other_dialect_are_misuse(
    installed_as: Any, tiny_llm: Any, tmp_path: Path, flavour: str, sets: int, message: str
) -> None:
    installed = installed_as(flavour)
    file = installed.engine(tmp_path / "llm.engine", tiny_llm.manifest, "llm", tiny_llm.graph)
    with installed.open_llm(tiny_llm.manifest, file) as llm:
        llm._sets = sets
        with pytest.raises(installed.misuse, match=message):
            llm.forward(np.ones((2, 32), np.float32), llm.new_cache())


@pytest.mark.parametrize(
    ("kind", "method"), [("stream", "synchronize"), ("event", "synchronize"), ("driver", "zero")]
)
def test_logits_are_wrong_without_each_wait_and_zero(
    installed: Any, tiny_llm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, method: str
) -> None:
    file = installed.engine(tmp_path / "llm.engine", tiny_llm.manifest, "llm", tiny_llm.graph)
    embeds = np.random.default_rng(0).standard_normal((300, 32), dtype=np.float32)
    with installed.open_llm(tiny_llm.manifest, file) as llm:
        expected = llm.forward(embeds, llm.new_cache()).logits
        np.testing.assert_array_equal(llm.forward(embeds, llm.new_cache()).logits, expected)
    with monkeypatch.context() as without:
        without.setattr(class_of(kind, installed.driver), method, lambda *_: None)
        llm = installed.open_llm(tiny_llm.manifest, file)
        found = llm.forward(embeds, llm.new_cache()).logits
    llm.close()
    assert not np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "method"), [("stream", "wait"), ("event", "record"), ("event", "synchronize")]
)
def test_masks_are_wrong_without_each_order_of_streams(
    rtx: Any,
    made_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    method: str,
) -> None:
    """Two images, a mask of each, no wait in between."""
    bundle = Bundle.open(made_bundle)
    pixels = bundle.check_vectors("pixel_encoder").inputs["pixel_values"]

    def masks() -> np.ndarray:
        encoder, decoder = (
            rtx.open_stage(
                bundle.manifest,
                name,
                rtx.engine(tmp_path / name, bundle.manifest, name, bundle.stage_file(name)),
            )
            for name in ("pixel_encoder", "pixel_decoder")
        )
        begun = []
        for scale in (1, 2):
            features = encoder.start({"pixel_values": pixels * scale}).outputs["mask_features"]
            hidden = np.full((1, 8), scale, np.float32)
            begun.append(decoder.start({"hidden_states": hidden, "mask_features": features}))
            del features
        return np.stack([mask.numpy("mask_logits") for mask in begun])

    expected = masks()
    assert np.isfinite(expected).all()
    with monkeypatch.context() as without:
        without.setattr(class_of(kind, rtx.driver), method, lambda *_: None)
        found = masks()
    assert not np.allclose(found, expected, atol=1e-5)
