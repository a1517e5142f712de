"""Both drivers do what `lira_engine.cuda.driver` says, and free what is dropped in any thread."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from lira_engine.errors import DeviceFailed, OutOfMemory

NOTHING = {"memory": 0, "host": 0, "streams": 0, "events": 0}
ONE_EACH = {"memory": 1, "host": 1, "streams": 1, "events": 1}


def in_a_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def one_of_each(card: Any) -> list[Any]:
    driver = card.driver
    with driver.current():
        return [driver.stream(), driver.event(), driver.allocate(64), driver.pinned((4,), np.uint8)]


def test_a_driver_names_its_package_and_the_device(card: Any) -> None:
    assert card.driver.name.startswith(f"{card.name} ") and card.driver.device == "Stand-in sm_87"


def test_data_go_to_the_device_across_it_and_back(card: Any) -> None:
    driver = card.driver
    with driver.current():
        stream, first, second = driver.stream(), driver.allocate(4096), driver.allocate(4096)
        given = driver.pinned((32, 32), np.float32)
        given[...] = np.arange(1024).reshape(32, 32)
        found = np.empty_like(given)
        driver.copy_in(first, given, stream)
        driver.zero(second, stream)
        driver.copy(second, first, 2048, stream)
        driver.copy_out(found, second, stream)
        assert np.isnan(found).all()  # enqueued
        stream.synchronize()
        np.testing.assert_array_equal(found[:16], given[:16])
        assert not found[16:].any()
    assert card.gpu.copies == [("in", 4096), ("on", 2048), ("out", 4096)]


def test_a_stream_waits_for_an_event_of_another_one(card: Any) -> None:
    driver, gpu = card.driver, card.gpu
    with driver.current():
        first, second, event, buffer = driver.stream(), driver.stream(), driver.event(), driver.allocate(8)
        given, found = np.arange(2, dtype=np.float32), np.empty(2, np.float32)
        event.synchronize()  # there is no mark yet
        driver.copy_in(buffer, given, first)
        event.record(first)
        second.wait(event)
        driver.copy_out(found, buffer, second)
        assert gpu.waits == 0
        second.synchronize()
        np.testing.assert_array_equal(found, given)
        event.synchronize()
        assert gpu.stream_of(first.handle).queue == gpu.stream_of(second.handle).queue


def test_page_locked_memory_has_the_shape_and_is_kept_by_its_views(card: Any) -> None:
    with card.driver.current():
        array = card.driver.pinned((3, 5), np.int64)
    assert array.shape == (3, 5) and array.dtype == np.int64 and array.flags.c_contiguous
    view = array[1:].view(np.uint8).reshape(-1)[8:]
    del array
    with card.driver.current():
        assert card.gpu.held["host"] == 1
    view[:] = 7
    del view
    with card.driver.current():
        assert card.gpu.held["host"] == 0


@pytest.mark.parametrize("makes", ["here", "elsewhere"])
@pytest.mark.parametrize("drops", ["here", "elsewhere"])
def test_what_is_dropped_in_any_thread_is_freed(card: Any, makes: str, drops: str) -> None:
    kept: list[Any] = []

    def make() -> None:
        kept.append(one_of_each(card))

    make() if makes == "here" else in_a_thread(make)
    assert card.gpu.held == ONE_EACH
    kept.clear() if drops == "here" else in_a_thread(kept.clear)
    with card.driver.current():
        assert card.gpu.held == NOTHING
    assert card.gpu.leaked == []


def test_what_the_garbage_collector_finds_in_another_thread_is_freed(card: Any) -> None:
    class Circle:
        pass

    circle: Any = Circle()
    circle.itself, circle.things = circle, one_of_each(card)
    del circle
    in_a_thread(gc.collect)
    with card.driver.current():
        assert card.gpu.held == NOTHING and card.gpu.leaked == []


def test_a_long_life_holds_nothing_back(card: Any) -> None:
    """As a server: every answer makes and drops, in threads that come and go."""
    for _ in range(50):
        in_a_thread(lambda: one_of_each(card))
    assert card.gpu.held == ONE_EACH  # the last ones
    with card.driver.current():
        assert card.gpu.held == NOTHING and card.gpu.leaked == []


def test_freed_memory_is_not_freed_again_when_it_is_dropped(card: Any) -> None:
    with card.driver.current():
        buffer = card.driver.allocate(8)
        buffer.free()
        assert card.gpu.held["memory"] == 0
        with pytest.raises(card.misuse, match="freed twice"):
            buffer.free()
        del buffer
    with card.driver.current():
        pass


def test_the_context_is_current_inside_only(card: Any) -> None:
    with card.driver.current(), card.driver.current():
        pass
    with pytest.raises(card.misuse, match="no context is current"):
        card.driver.allocate(1)
    with pytest.raises(ZeroDivisionError), card.driver.current():
        _ = 1 / 0
    assert not card.gpu.is_current


def test_too_much_memory_is_one_line_with_what_is_free(card: Any) -> None:
    message = r"Stand-in sm_87 has 1,023 of 1,024 MiB free, 1,025 MiB more are needed: close other programs"
    with card.driver.current():
        kept = card.driver.allocate(1 << 20)
        with pytest.raises(OutOfMemory, match=message):
            card.driver.allocate(1 << 30 | 1)
        kept.free()
        card.gpu.host_size = 1 << 20
        with pytest.raises(OutOfMemory, match="the system gives no 3 MiB of page-locked memory: close"):
            card.driver.pinned((3, 1 << 18), np.float32)
    assert card.gpu.held == NOTHING


@pytest.mark.parametrize("call", ["cuMemAlloc", "cuMemHostAlloc"])
def test_other_errors_are_not_taken_for_too_little_memory(
    card_with: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """pycuda has a class for each."""
    card = card_with("cuda-bindings")
    function: Any = lambda *_: (card.module.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, None)  # noqa: E731
    function.__name__ = call
    monkeypatch.setattr(card.module, call, function)
    failed = pytest.raises(DeviceFailed, match=f"{call} failed: CUDA_ERROR_ILLEGAL_ADDRESS")
    with failed, card.driver.current():
        card.driver.allocate(8)
        card.driver.pinned((8,), np.uint8)


def test_pycuda_ends_when_python_does(card_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[Any] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    assert at_exit == [card_with("pycuda").driver._end]


def test_pycuda_ends_by_releasing_the_context(card_with: Any) -> None:
    """Left to itself it detaches from it, which is an error of CUDA. It leaves what still lives to CUDA."""
    card = card_with("pycuda")
    living = one_of_each(card)
    one_of_each(card)
    in_a_thread(card.driver._end)
    card.module.context.end()
    del living
    assert card.gpu.held == ONE_EACH and card.gpu.leaked == []
