"""A stage's native runner: the portable stage's answers, and what is copied and waited for."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine.bundle import Bundle
from lira_engine.errors import LiraError
from lira_engine.ort import OrtStage
from lira_engine.trt.stage import TrtStage

FEATURES = 4 * 8 * 8 * 4  # bytes of mask_features [1, 4, 8, 8]
HIDDEN = 8 * 4  # of hidden_states [1, 8]

Open = Callable[[str], TrtStage]


@pytest.fixture
def bundle(made_bundle: Path) -> Bundle:
    return Bundle.open(made_bundle)


@pytest.fixture
def open_stage(installed: Any, bundle: Bundle, tmp_path: Path) -> Iterator[Open]:
    """Opens a stage of the bundle; closed in the end, when nothing may be left on the device."""
    with ExitStack() as opened:

        def open_one(name: str) -> TrtStage:
            file = installed.engine(
                tmp_path / f"{name}.engine", bundle.manifest, name, bundle.stage_file(name)
            )
            runner: TrtStage = opened.enter_context(installed.open_stage(bundle.manifest, name, file))
            return runner

        yield open_one
    assert installed.gpu.used == 0
    assert installed.gpu.pending() == 0


def expected(bundle: Bundle, name: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with OrtStage(name, bundle.stage_file(name), bundle.manifest.stages[name], threads=1) as runner:
        return runner.run(feeds)


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name])
        assert array.dtype == wanted[name].dtype


@pytest.mark.parametrize("name", ["semantic_encoder", "pixel_encoder", "sefe", "pixel_decoder"])
def test_answers_as_the_portable_stage(bundle: Bundle, open_stage: Open, name: str) -> None:
    runner = open_stage(name)
    assert runner.name == name
    feeds = bundle.check_vectors(name).inputs
    if name == "semantic_encoder":  # one tile at a time
        feeds = {"pixel_values": feeds["pixel_values"][:1]}
    same(runner.run(feeds), expected(bundle, name, feeds))
    other = {
        key: np.repeat(array * 2, 2, axis=-1)[..., ::2] for key, array in feeds.items()
    }  # not contiguous
    same(runner.run(other), expected(bundle, name, other))


def test_an_images_features_are_copied_once(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    encoder, decoder = open_stage("pixel_encoder"), open_stage("pixel_decoder")
    pixels = bundle.check_vectors("pixel_encoder").inputs["pixel_values"]
    images = [encoder.run({"pixel_values": pixels * scale})["mask_features"] for scale in (1, 2)]
    hidden = [np.full((1, 8), i, np.float32) for i in range(3)]
    assert installed.copies

    def mask(i: int, features: np.ndarray) -> list[int]:
        """The bytes that it took; the answer is checked."""
        feeds = {"hidden_states": hidden[i], "mask_features": features}
        same(decoder.run(feeds), expected(bundle, "pixel_decoder", feeds))
        return [size for way, size in installed.copies if way == "in"]

    assert sorted(mask(0, images[0])) == [HIDDEN, FEATURES]
    assert mask(1, images[0]) == mask(2, images[0]) == [HIDDEN]
    assert sorted(mask(0, images[1])) == [HIDDEN, FEATURES]
    assert mask(1, images[1]) == [HIDDEN]
    assert sorted(mask(1, images[0])) == [HIDDEN, FEATURES]


def test_what_may_have_changed_is_copied_each_time(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    decoder = open_stage("pixel_decoder")
    hidden, features = np.zeros((1, 8), np.float32), np.ones((1, 4, 8, 8), np.float32)
    view = features.view()
    view.setflags(write=False)  # who has `features` can still write to it
    for given in (features, view):
        for value in (1, 2, 3):
            features[:] = value
            feeds = {"hidden_states": hidden, "mask_features": given}
            same(decoder.run(feeds), expected(bundle, "pixel_decoder", feeds))
            assert ("in", FEATURES) in installed.copies


def test_an_array_in_the_place_of_one_that_died_is_copied(
    installed: Any, bundle: Bundle, open_stage: Open
) -> None:
    decoder = open_stage("pixel_decoder")
    hidden = np.zeros((1, 8), np.float32)
    for value in range(20):  # the same memory, most likely the same id
        features = np.full((1, 4, 8, 8), value, np.float32)
        features.setflags(write=False)
        feeds = {"hidden_states": hidden, "mask_features": features}
        same(decoder.run(feeds), expected(bundle, "pixel_decoder", feeds))
        del features, feeds


def test_results_are_the_callers_own(bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("pixel_encoder")
    feeds = dict(bundle.check_vectors("pixel_encoder").inputs)
    first = runner.run(feeds)
    kept = {name: array.copy() for name, array in first.items()}
    runner.run({"pixel_values": feeds["pixel_values"] + 1})
    same(first, kept)
    with pytest.raises(ValueError, match="read-only"):
        first["queries"][:] = 0


def test_buffers_grow_with_a_size_that_varies(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("sefe")
    feeds = dict(bundle.check_vectors("sefe").inputs)
    rng = np.random.default_rng(0)
    used = []
    for rows in (2, 14, 5):
        feeds["features"] = rng.standard_normal((1, rows, 8), np.float32)
        same(runner.run(feeds), expected(bundle, "sefe", feeds))
        used.append(installed.gpu.used)
    assert used[1] - used[0] == 12 * 8 * 4 and used[2] == used[1]


def test_feeds_that_do_not_fit_are_refused_and_harm_nothing(bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("sefe")
    feeds = dict(bundle.check_vectors("sefe").inputs)
    wanted = expected(bundle, "sefe", feeds)
    for rows in (1, 15):
        message = f"input features is [1, {rows}, 8], the engine takes [1, 2, 8] to [1, 14, 8]"
        with pytest.raises(LiraError, match=re.escape(message)):
            runner.run(feeds | {"features": np.zeros((1, rows, 8), np.float32)})
    with pytest.raises(
        LiraError, match="sefe: got inputs features; expected features, pixel_features, queries"
    ):
        runner.run({"features": feeds["features"]})
    with pytest.raises(LiraError, match=r"input queries is float64 \[1, 3, 8\], expected float32"):
        runner.run(feeds | {"queries": feeds["queries"].astype(np.float64)})
    same(runner.run(feeds), wanted)


def test_a_mask_waits_for_its_own_stream_alone(
    installed: Any, bundle: Bundle, open_stage: Open, tiny_llm: Any, tmp_path: Path
) -> None:
    decoder = open_stage("pixel_decoder")
    file = installed.engine(tmp_path / "llm.engine", tiny_llm.manifest, "llm", tiny_llm.graph)
    with installed.open_llm(tiny_llm.manifest, file) as llm:
        llm.forward(np.ones((3, 32), np.float32), llm.new_cache(), [])  # enqueued
        stream = installed.gpu.stream_of(llm._stream.handle)
        waiting = len(stream.queue)
        feeds = bundle.check_vectors("pixel_decoder").inputs
        same(decoder.run(feeds), expected(bundle, "pixel_decoder", feeds))
        assert len(stream.queue) == waiting > 0


def test_threads_take_turns(bundle: Bundle, open_stage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = open_stage("pixel_decoder")
    features = bundle.check_vectors("pixel_decoder").inputs["mask_features"]
    feeds = [
        {"hidden_states": np.full((1, 8), i, np.float32), "mask_features": features * i} for i in range(4)
    ]
    inside, most = 0, 0
    enqueue = decoder._enqueue

    def slowly(*arguments: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        found = enqueue(*arguments)
        inside -= 1
        return found

    monkeypatch.setattr(decoder, "_enqueue", slowly)
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: decoder.run(feeds[i])})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    for i in range(4):
        same(found[i], expected(bundle, "pixel_decoder", feeds[i]))


def test_a_pass_that_tensorrt_refuses_says_why(
    installed: Any, bundle: Bundle, open_stage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_stage("pixel_decoder")
    (context,) = installed.trt.engines[0].contexts
    monkeypatch.setattr(context, "execute_async_v3", lambda handle: context._complain("an internal\n error"))
    feeds = bundle.check_vectors("pixel_decoder").inputs
    with pytest.raises(
        LiraError, match=r"pixel_decoder\.engine: .* does not run: an internal error; run the"
    ):
        runner.run(feeds)
    monkeypatch.undo()


def test_closed_is_closed(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("pixel_decoder")
    feeds = bundle.check_vectors("pixel_decoder").inputs
    runner.run(feeds)
    runner.close()
    assert installed.gpu.used == 0
    with pytest.raises(ValueError, match="pixel_decoder is closed"):
        runner.run(feeds)
    runner.close()
