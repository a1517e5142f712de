"""COCO segmentations of every kind, and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from lira_bench.accuracy import segmentation
from lira_bench.accuracy.items import Dataset, LeftOut, Source
from lira_bench.accuracy.tasks import TASKS
from lira_engine.errors import LiraError
from lira_runtime import rle

HEIGHT, WIDTH = 12, 10
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[2:7, 3:9] = True
POLYGON = [[3, 2, 9, 2, 9, 7, 3, 7]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [3 * HEIGHT + 2, 5, 7, 5, 7, 5, 7, 5, 7, 5, 7, 5, HEIGHT + 5]}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, entries: Sequence[object]) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(task: str, data: Path, **options: Any) -> Dataset:
    return TASKS[task].read(Source(data, **options))


def reasons(dataset: Dataset) -> dict[str, str]:
    return {entry.key: entry.reason for entry in dataset.entries if isinstance(entry, LeftOut)}


@pytest.mark.parametrize(
    "stored",
    [
        POLYGON,
        RUNS,
        rle.encode(MASK),
        [rle.encode(MASK)],
        [rle.encode(MASK & (np.arange(WIDTH) < 5)), rle.encode(MASK & (np.arange(WIDTH) >= 5))],
    ],
    ids=["polygon", "uncompressed", "compressed", "list", "union"],
)
def test_every_kind_of_segmentation_is_decoded(stored: Any) -> None:
    found = segmentation.decode(stored, HEIGHT, WIDTH)
    assert found.dtype == bool and np.array_equal(found, MASK)


def test_polygons_are_drawn_as_pycocotools_draws_them() -> None:
    parts = [[0.4, 1.2, 7.9, 0.3, 5.5, 9.9], [2, 8, 9.5, 8.5, 9, 11.5, 2.2, 11]]
    expected = coco.decode(coco.merge(coco.frPyObjects(parts, HEIGHT, WIDTH))).astype(bool)
    assert np.array_equal(segmentation.decode(parts, HEIGHT, WIDTH), expected)
    assert expected.any()


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (
            {**RUNS, "size": [WIDTH, HEIGHT]},
            "the mask is 12 x 10 (width x height), expected the image's 10 x 12",
        ),
        ({"counts": RUNS["counts"]}, "no size"),
        ({**RUNS, "counts": [5, 5]}, "do not cover"),
        ({**RUNS, "counts": [-5, HEIGHT * WIDTH + 5]}, "do not cover"),
        ({**RUNS, "counts": "05"}, "covers 5 pixels"),
        ([], "neither"),
        ("abc", "neither"),
        ([[1, 2, 3, 4]], "4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], "far outside"),
        ([[1, 2, 3, 4, 5, float("nan")]], "far outside"),
        ([[1, 2, 3, 4, 5, "6"]], "far outside"),
        ([[1, 2, 3, 4, 5, 10**400]], "a number of 401 digits, far outside"),
        ([[1, 2, 3, 4, 5, -(10**400)]], "far outside"),
        ([[1, 2, 3, 4, 5, True]], "far outside"),
        ({**RUNS, "size": [10**400, WIDTH]}, "the mask is 10 x a number of 401 digits"),
        ({**RUNS, "size": [-HEIGHT, WIDTH]}, "the mask is 10 x -12"),
        ({**RUNS, "size": [12.0, WIDTH]}, "no size"),
        ({**RUNS, "counts": [10**400]}, "do not cover"),
        ({**RUNS, "counts": [float("nan"), 1]}, "do not cover"),
        ({**RUNS, "counts": None}, "expected a list or a text"),
        ({**RUNS, "counts": "\u2603"}, "not a COCO run-length encoding"),
        ([{"size": [1, 1], "counts": [1]}], "expected the image's"),
    ],
)
def test_damaged_segmentations_are_refused(stored: Any, said: str) -> None:
    with pytest.raises(LiraError) as error:
        segmentation.decode(stored, HEIGHT, WIDTH)
    assert said in str(error.value)
