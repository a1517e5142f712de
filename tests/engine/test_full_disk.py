"""A disk that is full at any moment of a build: one line that names a file, and the earlier engines stay."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lira_engine import Bundle, LiraError
from lira_engine.build import build
from lira_engine.engines.usable import usable_build
from lira_engine.targets import target_named

RoomFor = Callable[[int], AbstractContextManager[None]]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_build(bundle_path: Path, precision: str, room_for: RoomFor) -> None:
    folder = build(bundle_path, "cpu", precision, threads=1)
    largest = max(file.stat().st_size for file in folder.iterdir())
    listed, built = sorted(os.listdir(folder)), 0
    for share in range(1, 12):
        with room_for(largest * share // 10):
            try:
                build(bundle_path, "cpu", precision, threads=1, force=True)
                built += 1
            except LiraError as error:
                said = str(error)
                assert len(said.splitlines()) == 1 and str(folder.parent) in said, said
                assert "free some room" in said or "take a disk" in said, said
        assert os.listdir(folder.parent) == [folder.name] and sorted(os.listdir(folder)) == listed
        usable_build(Bundle.open(bundle_path), target_named("cpu"), precision, "full")
    assert 1 <= built <= 9


def test_an_opening_with_no_room_for_what_it_remembers(bundle_path: Path, room_for: RoomFor) -> None:
    build(bundle_path, "cpu", "fp32", threads=1)
    with room_for(0):
        usable_build(Bundle.open(bundle_path), target_named("cpu"), "fp32")
    json.loads((bundle_path / "engines" / "cpu-fp32" / "build.json").read_bytes())
