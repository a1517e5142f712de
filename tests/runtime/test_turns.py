"""A region's runs: encoded at first use, once, and right whatever became of the mask meanwhile."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from lira_runtime import Region, rle
from lira_runtime.masks import Mask
from lira_runtime.turns import Turn

WIDTH, HEIGHT = 40, 24


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The masks that were encoded."""
    masks: list[np.ndarray] = []
    encode = rle.encode

    def counting(mask: np.ndarray) -> dict[str, Any]:
        masks.append(mask)
        return encode(mask)

    monkeypatch.setattr(rle, "encode", counting)
    return masks


def mask(seed: int = 0) -> Mask:
    logits = np.random.default_rng(seed).normal(size=(16, 16)).astype(np.float32)
    return Mask(lambda: logits, WIDTH, HEIGHT)


def test_nothing_is_encoded_before_somebody_asks(encoded: list[np.ndarray]) -> None:
    taken = mask()
    region = Region.of(taken)
    turn = Turn("it?", (7, region, 8))
    assert turn.regions == [region] and turn == Turn("it?", (7, region, 8)) and region != 7
    assert region.size == (HEIGHT, WIDTH) and not encoded


def test_a_mask_and_its_regions_are_encoded_once(encoded: list[np.ndarray]) -> None:
    taken = mask()
    first, second = Region.of(taken), Region.of(taken)
    expected = rle.encode(taken.binary)
    encoded.clear()
    assert taken.rle == expected == {"size": list(first.size), "counts": first.counts}
    assert first == second and hash(first) == hash(second) and repr(first) == repr(second)
    np.testing.assert_array_equal(first.mask, taken.binary)
    assert len(encoded) == 1
    taken.rle["counts"] = ""  # a reader's own copy
    assert taken.rle == expected and taken.nbytes == 16 * 16 * 4 + WIDTH * HEIGHT + len(first.counts)


def test_a_region_outlives_its_mask_and_keeps_no_mask(encoded: list[np.ndarray]) -> None:
    taken = mask()
    region, runs = Region.of(taken), rle.encode(taken.binary)["counts"]
    region_of_another = Region.of(mask(1))
    encoded.clear()
    del taken
    assert region._mask() is None  # nothing else holds it
    assert region.counts == runs and len(encoded) == 1
    assert region._logits is None and region.counts == runs and len(encoded) == 1
    assert region == Region((HEIGHT, WIDTH), runs) != region_of_another
    assert region != Region((WIDTH, HEIGHT), runs)


def test_a_turn_is_pickled_by_its_runs() -> None:
    turn = Turn("it?", (7, Region.of(mask()), 8))
    kept = pickle.dumps(turn)
    assert pickle.loads(kept) == turn and len(kept) < 600
    assert repr(pickle.loads(kept)) == repr(turn) and "_logits" not in repr(turn)
