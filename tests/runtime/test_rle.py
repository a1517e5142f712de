from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pycocotools import mask as coco

from lira_engine.errors import LiraError
from lira_runtime import rle


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    blob = np.hypot(*(np.mgrid[:90, :130] - np.array([40, 60])[:, None, None])) < 30
    return [
        np.zeros((5, 7), dtype=bool),
        np.ones((5, 7), dtype=bool),
        np.array([[True]]),
        rng.random((60, 41)) < 0.5,
        np.eye(300, 200, dtype=bool),
        blob,
        np.asfortranarray(blob),
        blob[::2, ::-1],
    ]


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: "x".join(map(str, mask.shape)))
def test_encoding_survives_json(mask: np.ndarray) -> None:
    found = rle.decode(json.loads(json.dumps(rle.encode(mask))))
    assert found.dtype == bool
    assert_array_equal(found, mask)


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: "x".join(map(str, mask.shape)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools' own, with NumPy 2
def test_pycocotools_reads_the_encoding(mask: np.ndarray) -> None:
    assert_array_equal(coco.decode(rle.encode(mask)), mask)


def test_a_known_mask_has_its_known_encoding() -> None:
    """Column by column, background first: 2 x 3 with the last column set has runs of 4 and 2."""
    mask = np.array([[0, 0, 1], [0, 0, 1]], dtype=bool)
    assert rle.encode(mask) == {"size": [2, 3], "counts": "42"}


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"size": [2, 3]},
        {"size": [2], "counts": "42"},
        {"size": ["a", 3], "counts": "42"},
        {"size": [2, 3], "counts": "4"},
        {"size": [2, 3], "counts": "4222"},
        {"size": [2, 3], "counts": ""},
        {"size": [-2, -3], "counts": "42"},
        {"size": [2, 3], "counts": "4P"},
        {"size": [2, 3], "counts": "8N"},  # 8 pixels, and -2
        {"size": [2, 3], "counts": "P" * 10_000 + "0"},
        {"size": [2, 3], "counts": "o" * 10_000 + "0"},  # a number of 15,000 digits
        {"size": [2, 3], "counts": "\x7f\x7f"},
        {"size": [2, 3], "counts": "ä"},
        {"size": [2, 3], "counts": [4, 2]},
        {"size": [100_000, 100_000], "counts": "42"},
    ],
    ids=str,
)
def test_bad_encodings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(LiraError) as caught:
        rle.decode(bad)
    assert "\n" not in str(caught.value)


def test_a_mask_has_at_most_the_pixels_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs may fill it: a few characters would ask for gigabytes."""
    monkeypatch.setattr(rle, "MAX_PIXELS", 6)
    assert rle.decode({"size": [2, 3], "counts": "42"}).sum() == 2
    with pytest.raises(LiraError, match="of 1 x 7 pixels, expected at most 6"):
        rle.decode({"size": [1, 7], "counts": "52"})


def test_a_mask_of_other_than_two_dimensions_raises_value_error() -> None:
    with pytest.raises(ValueError, match="expected"):
        rle.encode(np.zeros((1, 5, 7), dtype=bool))
