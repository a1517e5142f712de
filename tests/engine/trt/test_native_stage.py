"""A stage's TensorRT runner: the portable stage's outputs, and what is copied and waited for."""

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

from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError
from lira_engine.ort.stage import OrtStage
from lira_engine.trt.stage import Block, TrtStage

HIDDEN = 8 * 4  # bytes of hidden_states [1, 8]
MASK = 8 * 8 * 4  # of mask_logits [1, 8, 8]
PIXELS = 3 * 32 * 32 * 4  # of pixel_values [1, 3, 32, 32]

Open = Callable[[str], TrtStage]


@pytest.fixture
def bundle(made_bundle: Path) -> Bundle:
    return Bundle.open(made_bundle)


@pytest.fixture
def open_stage(installed: Any, bundle: Bundle, tmp_path: Path) -> Iterator[Open]:
    """Open stages of the bundle; close them at the end, and expect nothing left on the device."""
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
def test_outputs_equal_the_portable_stages(bundle: Bundle, open_stage: Open, name: str) -> None:
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


Feeds = dict[str, np.ndarray]


def image_and_masks(bundle: Bundle, open_stage: Open) -> tuple[TrtStage, TrtStage, list[Feeds]]:
    """Return the pixel encoder, the pixel decoder, and the encoder's inputs for two images."""
    pixels = bundle.check_vectors("pixel_encoder").inputs["pixel_values"]
    images = [{"pixel_values": pixels * scale} for scale in (1, 2)]
    return open_stage("pixel_encoder"), open_stage("pixel_decoder"), images


def wanted_mask(bundle: Bundle, image: Feeds, hidden: np.ndarray) -> np.ndarray:
    features = expected(bundle, "pixel_encoder", image)["mask_features"]
    feeds = {"hidden_states": hidden, "mask_features": features}
    return expected(bundle, "pixel_decoder", feeds)["mask_logits"]


def hidden_state(value: float) -> np.ndarray:
    return np.full((1, 8), value, np.float32)


def test_an_images_features_stay_on_the_device(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    encoder, decoder, images = image_and_masks(bundle, open_stage)
    features = [encoder.start(image).outputs["mask_features"] for image in images]
    assert installed.copies == [("in", PIXELS), ("in", PIXELS)]
    for which, value in [(0, 1), (0, 2), (1, 2), (0, 3)]:
        feeds = {"hidden_states": hidden_state(value), "mask_features": features[which]}
        found = decoder.run(feeds)["mask_logits"]
        np.testing.assert_array_equal(found, wanted_mask(bundle, images[which], hidden_state(value)))
        assert installed.copies == [("in", HIDDEN), ("out", MASK)]


def test_the_host_waits_only_when_it_needs_a_result(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    encoder, decoder, images = image_and_masks(bundle, open_stage)
    installed.gpu.waits = 0
    image = encoder.start(images[0])
    mask = decoder.start({"hidden_states": hidden_state(3), "mask_features": image.outputs["mask_features"]})
    assert (installed.gpu.waits, installed.gpu.pending() > 0) == (0, True)
    wanted = wanted_mask(bundle, images[0], hidden_state(3))
    np.testing.assert_array_equal(mask.numpy("mask_logits"), wanted)
    np.testing.assert_array_equal(mask.numpy("mask_logits"), wanted)


def test_a_later_pass_reuses_dropped_memory(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    encoder, decoder, images = image_and_masks(bundle, open_stage)
    used = set()
    for i in range(6):
        features = encoder.start(images[i % 2]).outputs["mask_features"]
        decoder.start({"hidden_states": hidden_state(i), "mask_features": features}).numpy("mask_logits")
        if i >= 1:  # an image's features are dropped when the next one has been looked at
            used.add(installed.gpu.used)
    assert len(used) == 1


def test_reused_memory_is_overwritten_only_after_its_last_read(
    installed: Any, bundle: Bundle, open_stage: Open
) -> None:
    encoder, decoder, images = image_and_masks(bundle, open_stage)
    features = encoder.start(images[0]).outputs["mask_features"]
    address = features.block.buffer.address
    mask = decoder.start({"hidden_states": hidden_state(5), "mask_features": features})
    del features
    later = encoder.start(images[1])
    assert later.outputs["mask_features"].block.buffer.address == address
    same({name: later.numpy(name) for name in later.outputs}, expected(bundle, "pixel_encoder", images[1]))
    wanted = wanted_mask(bundle, images[0], hidden_state(5))
    np.testing.assert_array_equal(mask.numpy("mask_logits"), wanted)


def test_arrays_may_change_once_a_pass_has_started(bundle: Bundle, open_stage: Open) -> None:
    decoder = open_stage("pixel_decoder")
    hidden, features = hidden_state(1), np.ones((1, 4, 8, 8), np.float32)
    begun, wanted = [], []
    for value in (1, 2, 3):
        features[:] = value
        feeds = {"hidden_states": hidden, "mask_features": features}
        begun.append(decoder.start(feeds))
        wanted.append(expected(bundle, "pixel_decoder", feeds))
    for mask, each in zip(begun, wanted, strict=True):
        np.testing.assert_array_equal(mask.numpy("mask_logits"), each["mask_logits"])


def test_results_never_change_and_are_read_only(bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("pixel_encoder")
    feeds = dict(bundle.check_vectors("pixel_encoder").inputs)
    first = runner.run(feeds)
    kept = {name: array.copy() for name, array in first.items()}
    runner.run({"pixel_values": feeds["pixel_values"] + 1})
    same(first, kept)
    with pytest.raises(ValueError, match="read-only"):
        first["queries"][:] = 0


def test_closing_waits_for_passes_that_still_read(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    encoder, decoder, images = image_and_masks(bundle, open_stage)
    features = encoder.start(images[0]).outputs["mask_features"]
    feeds = {"hidden_states": hidden_state(2), "mask_features": features}
    mask = decoder.start(feeds)
    encoder.close()
    wanted = wanted_mask(bundle, images[0], hidden_state(2))
    np.testing.assert_array_equal(mask.numpy("mask_logits"), wanted)
    with pytest.raises(ValueError, match="pixel_encoder is closed and its results are gone"):
        decoder.start(feeds)
    decoder.close()
    with pytest.raises(ValueError, match="pixel_decoder is closed"):
        mask.numpy("mask_logits")


def test_a_tensor_of_another_kind_of_engine_is_refused(bundle: Bundle, open_stage: Open) -> None:
    decoder, name = open_stage("pixel_decoder"), "pixel_encoder"
    with OrtStage(name, bundle.stage_file(name), bundle.manifest.stages[name], threads=1) as encoder:
        features = encoder.start(bundle.check_vectors(name).inputs).outputs["mask_features"]
        with pytest.raises(TypeError, match="got OrtTensor of another kind of engine, expected an array"):
            decoder.start({"hidden_states": hidden_state(1), "mask_features": features})


def test_buffers_grow_with_a_dynamic_size(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("sefe")
    feeds = dict(bundle.check_vectors("sefe").inputs)
    rng = np.random.default_rng(0)
    used = []
    for rows in (2, 14, 5):
        feeds["features"] = rng.standard_normal((1, rows, 8), np.float32)
        same(runner.run(feeds), expected(bundle, "sefe", feeds))
        used.append(installed.gpu.used)
    assert used[1] - used[0] == 12 * 8 * 4 and used[2] == used[1]


def test_a_growing_buffer_waits_for_the_previous_pass(bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("sefe")
    feeds = dict(bundle.check_vectors("sefe").inputs)
    rng = np.random.default_rng(0)
    given = [{**feeds, "features": rng.standard_normal((1, rows, 8), np.float32)} for rows in (2, 14, 5)]
    begun = [runner.start(each) for each in given]
    for one, each in zip(begun, given, strict=True):
        same({name: one.numpy(name) for name in one.outputs}, expected(bundle, "sefe", each))


def test_shapes_are_inferred_again_only_if_an_input_shape_changes(bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("sefe")
    feeds = dict(bundle.check_vectors("sefe").inputs)
    count = 0
    context: Any = runner._context._context  # type: ignore[union-attr]
    infer = context.infer_shapes

    def counted() -> list[str]:
        nonlocal count
        count += 1
        return list(infer())

    context.infer_shapes = counted
    for rows in (2, 2, 5):
        runner.run({**feeds, "features": np.zeros((1, rows, 8), np.float32)})
    assert count == 2 + 3  # the stand-in itself infers once a pass


def test_wrong_feeds_are_refused_and_the_stage_still_runs(bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("sefe")
    feeds = dict(bundle.check_vectors("sefe").inputs)
    wanted = expected(bundle, "sefe", feeds)
    for rows in (1, 27):
        message = f"input features is [1, {rows}, 8], the engine takes [1, 2, 8] to [1, 26, 8]"
        with pytest.raises(LiraError, match=re.escape(message)):
            runner.run(feeds | {"features": np.zeros((1, rows, 8), np.float32)})
    with pytest.raises(
        LiraError, match="sefe: got inputs features; expected features, pixel_features, queries"
    ):
        runner.run({"features": feeds["features"]})
    with pytest.raises(LiraError, match=r"input queries is float64 \[1, 3, 8\], expected float32"):
        runner.run(feeds | {"queries": feeds["queries"].astype(np.float64)})
    same(runner.run(feeds), wanted)


def test_a_mask_waits_for_its_own_stream_only(
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


def test_fetch_waits_without_the_lock_and_copies_with_it(
    installed: Any, bundle: Bundle, open_stage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads go on during the wait; none frees what is being copied. All stages share the lock."""
    encoder, decoder, images = image_and_masks(bundle, open_stage)
    driver = installed.driver
    assert encoder._lock is decoder._lock is driver.lock
    held, wait, copy = [], Block.synchronize, driver.copy_out

    def waits(block: Block) -> None:
        held.append(("wait", driver.lock.locked()))
        wait(block)

    def copies(*arguments: Any) -> None:
        held.append(("copy", driver.lock.locked()))
        copy(*arguments)

    monkeypatch.setattr(Block, "synchronize", waits)
    monkeypatch.setattr(driver, "copy_out", copies)
    features = encoder.start(images[0]).outputs["mask_features"]
    decoder.start({"hidden_states": hidden_state(1), "mask_features": features}).numpy("mask_logits")
    assert held == [("wait", False), ("copy", True)]


def test_closing_waits_for_the_lock(installed: Any, open_stage: Open) -> None:
    decoder = open_stage("pixel_decoder")
    closing = threading.Thread(target=decoder.close)
    with installed.driver.lock:
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
    closing.join()
    assert installed.gpu.used == 0


def test_a_result_does_not_wait_for_a_later_pass(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    encoder, decoder, images = image_and_masks(bundle, open_stage)
    features = encoder.start(images[0]).outputs["mask_features"]
    first, second = (
        decoder.start({"hidden_states": hidden_state(i), "mask_features": features}) for i in (1, 2)
    )
    buffer = decoder._inputs["hidden_states"].buffer
    first.numpy("mask_logits")
    assert installed.gpu.stream_of(decoder._stream.handle).queue
    second.numpy("mask_logits")
    decoder.start({"hidden_states": hidden_state(3), "mask_features": features}).numpy("mask_logits")
    assert decoder._inputs["hidden_states"].buffer is buffer


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


def test_a_refused_pass_is_an_error_with_tensorrts_reason(
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


def test_refused_shapes_are_an_error_with_tensorrts_reason(
    installed: Any, bundle: Bundle, open_stage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_stage("pixel_decoder")
    (context,) = installed.trt.engines[0].contexts

    def refuse() -> list[str]:
        context._complain("shapes of two inputs\n differ")
        raise RuntimeError("Error in infer shapes.")

    monkeypatch.setattr(context, "infer_shapes", refuse)
    with pytest.raises(
        LiraError, match="does not take these shapes together: shapes of two inputs differ; run"
    ):
        runner.run(bundle.check_vectors("pixel_decoder").inputs)


def test_a_closed_stage_is_freed_and_refuses_to_run(installed: Any, bundle: Bundle, open_stage: Open) -> None:
    runner = open_stage("pixel_decoder")
    feeds = bundle.check_vectors("pixel_decoder").inputs
    runner.run(feeds)
    runner.close()
    assert installed.gpu.used == 0
    with pytest.raises(ValueError, match="pixel_decoder is closed"):
        runner.run(feeds)
    runner.close()
