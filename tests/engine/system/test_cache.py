"""Where the user's folders are, on each kind of system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lira_engine.system.cache import cache_folder, data_folder

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
