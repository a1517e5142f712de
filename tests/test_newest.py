"""`make newest` names what is not in its newest release, and fails where nobody said why."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "newest"


@pytest.fixture
def newest() -> ModuleType:
    spec = spec_from_loader("newest", SourceFileLoader("newest", str(SCRIPT)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def older(
    newest: ModuleType, monkeypatch: pytest.MonkeyPatch, *names: str, held: tuple[str, ...] = ()
) -> None:
    """Let pip say that these packages have newer releases."""
    listed = [{"name": name, "version": "1", "latest_version": "99999"} for name in names]

    def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
        told = json.dumps(listed) if arguments[0] == "list" else "packaging (1)"
        return subprocess.CompletedProcess(arguments, 0, told, "")

    monkeypatch.setattr(newest, "pip", pip)
    monkeypatch.setattr(newest, "HELD", dict.fromkeys(held, "a reason"))


def test_what_is_held_back_without_a_reason_fails(
    newest: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    older(newest, monkeypatch, "mpmath")  # nobody asks for it by name
    assert newest.main(True) == 0
    older(newest, monkeypatch, "NumPy", "mpmath")
    monkeypatch.setattr(newest, "holders", lambda name, version: [f"other ({name}<{version})"])
    assert newest.main(False) == 1
    assert (
        "numpy is 1, the newest is 99999; not in HELD, kept back by: other (numpy<99999)"
        in capsys.readouterr().out
    )
    older(newest, monkeypatch, "numpy", held=("numpy",))
    assert newest.main(True) == 0
    older(newest, monkeypatch, held=("numpy",))
    assert newest.main(True) == 1
    assert "numpy is held by nothing any more" in capsys.readouterr().out


def test_the_packages_that_hold_one_back_are_named(newest: ModuleType) -> None:
    found = newest.holders("numpy", "1.0")
    assert any(one.startswith("lira-edge (numpy>=") for one in found)
    assert not any('== "win32"' in one or "extra ==" in one for one in found)  # what applies elsewhere
    assert newest.holders("numpy", metadata.version("numpy")) == []


def test_without_an_index_only_ci_fails(
    newest: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(newest, "pip", lambda *_: subprocess.CompletedProcess(_, 1, "", "no network"))
    assert (newest.main(False), newest.main(True)) == (0, 1)
    assert capsys.readouterr().out.count("cannot be reached") == 2


def test_the_settings_of_ci_do_not_silence_pip(newest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_QUIET", "1")
    assert newest.pip("--version").stdout.startswith("pip ")
