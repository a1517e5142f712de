"""Where the user's folders are, on each kind of system, and that they are the user's alone."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lira_engine import LiraError
from lira_engine.system import cache as cache_module
from lira_engine.system.cache import (
    Durations,
    cache_folder,
    data_folder,
    own_folder,
    read_own,
    read_own_json,
    write_own,
)

HOME = Path("/home/ada")


@pytest.mark.parametrize(
    ("system", "cache", "data"),
    [
        ("linux", ".cache/lira-edge", ".local/share/lira-edge"),
        ("darwin", "Library/Caches/lira-edge", "Library/Application Support/lira-edge"),
        ("win32", "AppData/Local/lira-edge", "AppData/Local/lira-edge/data"),
    ],
)
def test_each_system_has_its_folders(
    system: str, cache: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: HOME)
    assert cache_folder() == HOME / cache
    assert data_folder() == HOME / data


def test_variables_move_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    monkeypatch.setenv("XDG_DATA_HOME", "/kept")
    assert cache_folder() == Path("/fast/lira-edge")
    assert data_folder() == Path("/kept/lira-edge")


def test_relative_folders_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever stands in a stranger's folder would believe the record in it."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: HOME)
    for given in ("data", ".", ""):
        monkeypatch.setenv("XDG_DATA_HOME", given)
        assert data_folder() == HOME / ".local/share/lira-edge"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache folder, which is not there yet. What was said once may be said again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    cache_module._say_once.cache_clear()
    before = os.umask(0)  # as the worst user's
    yield cache_folder()
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes of Linux and macOS")


@posix
@pytest.mark.parametrize("of", [cache_folder, data_folder])
def test_folders_and_files_are_the_users_alone(folder: Path, of: object) -> None:
    root = of()  # type: ignore[operator]
    write_own(root / "deep" / "a.json", b"1")
    assert mode(root) == 0o700 and mode(root / "deep" / "a.json") == 0o600
    assert read_own(root / "deep" / "a.json") == b"1"
    assert mode(own_folder(root / "engines")) == 0o700


@posix
def test_an_older_folder_is_narrowed_and_its_files_are_kept(folder: Path) -> None:
    (folder / "verified").mkdir(parents=True)
    for name, rights in (("mine", 0o644), ("ours", 0o664), ("theirs", 0o646)):
        (folder / name).write_text("1")
        (folder / name).chmod(rights)
    folder.chmod(0o755)
    assert [read_own(folder / name) for name in ("mine", "ours", "theirs")] == [b"1", None, None]
    assert mode(folder) == 0o700
    folder.chmod(0o750)
    assert read_own(folder / "mine") == b"1" and mode(folder) == 0o700
    folder.chmod(0o777)
    write_own(folder / "ours", b"2")
    assert mode(folder) == 0o700 and read_own(folder / "ours") == b"2"


def link_to(target: Path) -> None:
    own_folder(target)
    target.rename(target.with_name("elsewhere"))
    target.symlink_to(target.with_name("elsewhere"))


def another_users(target: Path) -> None:
    own_folder(target)
    os.geteuid = lambda: 12345  # type: ignore[assignment]


def file_at(target: Path) -> None:
    target.parent.mkdir()
    target.write_text("x")


@posix
@pytest.mark.parametrize("make", [link_to, another_users, file_at])
def test_what_is_not_the_users_folder_is_not_used_and_told_once(
    folder: Path, make: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", os.geteuid)  # undone after the test
    make(folder)  # type: ignore[operator]
    for _ in range(2):
        assert read_own(folder / "a.json") is None
        with pytest.raises(LiraError, match="lira-edge is a link, a file or another"):
            write_own(folder / "a.json", b"1")
        with pytest.raises(LiraError):
            own_folder(folder / "engines")
        Durations("times").keep("x", 1.0)  # as if there were no folder
        assert Durations("times").last("x") is None
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"warning: {folder} is a link, a file or another user's folder and is not used: remove it"
    ]
    assert not folder.is_dir() or list(folder.iterdir()) == []


@posix
def test_what_is_no_file_of_the_user_counts_as_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_folder(folder)
    os.mkfifo(folder / "pipe", 0o600)
    (folder / "device").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    write_own(folder / "large", b"12345")
    assert read_own(folder / "large", 5) == b"12345"
    for name in ("pipe", "device", "folder", "missing"):
        assert read_own(folder / name) is None
    assert read_own(folder / "large", 4) is None
    with pytest.raises(ValueError, match="in none of the user's folders"):
        read_own(folder.parent / "other")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"[1]", b"\xff", b"[" * 100_000, b"1" * 5000, b'{"a": ' + b"1" * 5000 + b"}"]
)
def test_a_damaged_file_counts_as_an_empty_one(folder: Path, content: bytes) -> None:
    write_own(folder / "times.json", content)
    assert read_own_json(folder / "times.json") == {}
    times = Durations("times")
    times.keep("a", 2)
    assert times.last("a") == 2.0 and times.text("a") == ", 2 s last time" and times.text("b") == ""


@pytest.mark.parametrize("value", ["null", "true", '"1"', "NaN", "Infinity", "[1]", "1" + "0" * 400, "7"])
def test_a_duration_that_is_no_number_of_seconds_counts_as_none(folder: Path, value: str) -> None:
    write_own(folder / "times.json", f'{{"a": {value}, "b": 3.5}}'.encode())
    assert Durations("times").last("a") is None and Durations("times").last("b") == 3.5
    Durations("times").keep("a", 4.0)
    assert json.loads((folder / "times.json").read_bytes()) == {"a": 4.0, "b": 3.5}


@posix
def test_another_users_file_in_the_users_folder_counts_as_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_own(folder / "a", b"1")
    assert read_own(folder / "a") == b"1"
    monkeypatch.setattr(cache_module, "_only_mine", lambda folder: True)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert read_own(folder / "a") is None
