"""What a user knows of engines is kept outside of bundles, and counts only if nobody else could write it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lira_engine.errors import LiraError
from lira_engine.system.cache import data_folder
from lira_engine.trust import known_builds
from lira_engine.trust.known_builds import NOTHING_KNOWN, KnownBuild, keep_known, known_build


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return data_folder()


def test_facts_add_up_in_a_file_for_this_user_only(data: Path) -> None:
    assert known_build("a1") == NOTHING_KNOWN
    keep_known("a1", built="then")
    keep_known("a1", verified={"errors": 1.0})
    keep_known("b2", checked="now")
    assert known_build("a1") == KnownBuild(built="then", verified={"errors": 1.0})
    assert known_build("b2") == KnownBuild(checked="now")
    assert [path.stat().st_mode & 0o777 for path in (data / "builds").iterdir()] == [0o600, 0o600]
    keep_known("a1", verified=None)
    assert known_build("a1") == KnownBuild(built="then")


def test_what_other_check_vectors_found_is_forgotten(data: Path) -> None:
    keep_known("a1", built="then", signed="k", vectors="v1", verified={"errors": 1.0}, checked="now")
    keep_known("a1", vectors="v2", checked="later")
    assert known_build("a1") == KnownBuild("then", "later", "k", None, "v2")
    assert known_build("a1").by_vectors("v1") == KnownBuild("then", "", "k", None, "v1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"built": 3}',
        b'{"bought": "then"}',
        b'{"built": ',
        b"[" * 100_000,
        b"{}" + b" " * (2 << 20),
    ],
)
def test_a_damaged_record_counts_for_nothing(data: Path, content: bytes) -> None:
    keep_known("a1", built="then")
    (data / "builds" / "a1.json").write_bytes(content)
    assert known_build("a1") == NOTHING_KNOWN


def test_a_record_that_others_may_write_counts_for_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_known("a1", built="then")
    path = data / "builds" / "a1.json"
    path.chmod(0o620)
    assert known_build("a1") == NOTHING_KNOWN
    path.chmod(0o600)
    assert known_build("a1").built
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert known_build("a1") == NOTHING_KNOWN


def test_a_pipe_in_its_place_counts_for_nothing(data: Path) -> None:
    (data / "builds").mkdir(parents=True)
    os.mkfifo(data / "builds" / "a1.json")
    assert known_build("a1") == NOTHING_KNOWN


def test_the_records_written_last_are_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_builds, "KEPT", 3)
    for number in range(5):
        keep_known(f"a{number}", built="then")
        os.utime(data / "builds" / f"a{number}.json", ns=(number, number))
    keep_known("a2", checked="now")  # not the oldest now
    keep_known("a5", built="then")
    assert sorted(path.stem for path in (data / "builds").iterdir()) == ["a2", "a4", "a5"]


def test_a_folder_that_cannot_be_written_is_an_error(data: Path) -> None:
    data.parent.mkdir()
    data.write_text("")
    with pytest.raises(LiraError, match=r"is not used: remove it"):
        keep_known("a1", built="then")
    assert known_build("a1") == NOTHING_KNOWN


def test_the_file_is_what_the_documentation_says(data: Path) -> None:
    keep_known("a1", built="then")
    content = json.loads((data / "builds" / "a1.json").read_text())
    assert content == {"built": "then", "checked": "", "signed": "", "verified": None, "vectors": ""}
