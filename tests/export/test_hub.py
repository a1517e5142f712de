"""Checkpoints from several places, with a stand-in for the hub."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from lira_engine.bundle import Bundle
from lira_engine.errors import LiraError
from lira_engine.main import main
from lira_export.checkpoint import ROLES, Checkpoint
from lira_export.hub import HubSource, gather

PATTERNS = {role: patterns for role, (patterns, _) in ROLES.items()}


class Hub:
    """Repositories in memory: name -> folder. Downloads copy files, as the real one's cache does."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.repositories: dict[str, Path] = {}
        self.downloads: list[str] = []
        self.checksums: dict[str, str] = {}

    def model_info(self, repo_id: str, *, revision: str | None = None, files_metadata: bool = False) -> Any:
        if repo_id not in self.repositories:
            raise self.http_error(huggingface_hub.errors.RepositoryNotFoundError, "404 no such repository")
        assert files_metadata
        folder = self.repositories[repo_id]
        siblings = []
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            digest = self.checksums.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
            siblings.append(SimpleNamespace(rfilename=path.name, lfs=SimpleNamespace(sha256=digest)))
        return SimpleNamespace(sha=revision or "main0", siblings=siblings)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None = None) -> str:
        self.downloads.append(f"{repo_id}/{filename}@{revision}")
        target = self.cache / repo_id.replace("/", "--") / str(revision) / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.repositories[repo_id] / filename, target)
        return str(target)

    @staticmethod
    def http_error(kind: type[Exception], text: str) -> Exception:
        error = kind.__new__(kind, text)  # the library makes them from its HTTP client's responses
        error.args = (text,)
        return error


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in.hf_hub_download)
    lira = tmp_path / "lira"
    lira.mkdir()
    shutil.copy(tiny_checkpoint / "LIRA-tiny.pth", lira)
    (lira / "README.md").write_text("not needed")
    base = next(tiny_checkpoint.glob("internvl2-*"))
    stand_in.repositories = {"someone/LIRA": lira, "someone/base": base}
    return stand_in


def others(folder: Path) -> dict[str, str]:
    """Where the three files are that are on no hub, by role."""
    return {role: str(next(folder.glob(PATTERNS[role][0]))) for role in ("head", "clip", "classes")}


@pytest.mark.parametrize(("ours", "theirs"), [
    (Hub.model_info, huggingface_hub.HfApi.model_info),
    (Hub.hf_hub_download, huggingface_hub.hf_hub_download),
])  # fmt: skip
def test_the_stand_in_takes_what_the_library_takes(
    ours: Callable[..., Any], theirs: Callable[..., Any]
) -> None:
    assert set(inspect.signature(ours).parameters) - {"self"} <= set(inspect.signature(theirs).parameters)


def test_export_from_the_hub(hub: Hub, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The tiny sizes are not upstream's: the folder's own config.json says them, as a local file."""
    sources = {**others(tiny_checkpoint), "base": "hub:someone/base@v1"}
    folder = gather("hub:someone/LIRA", sources, PATTERNS)
    shutil.copy(tiny_checkpoint / "config.json", folder)
    expected, found = Checkpoint.open(tiny_checkpoint), Checkpoint.open(folder)
    for name in ("llm.layers.0.q.weight", "semantic_encoder.mlp1.1.weight", "text2vision.model.0.weight"):
        assert found.tensor(name).equal(expected.tensor(name))
    assert folder.name == "LIRA-tiny"
    assert "someone/LIRA/README.md@main0" not in hub.downloads
    assert {name for name in hub.downloads if name.startswith("someone/base")} == {
        "someone/base/config.json@v1", "someone/base/model.safetensors@v1", "someone/base/tokenizer.json@v1",
    }  # fmt: skip
    assert gather("hub:someone/LIRA", sources, PATTERNS) == folder


def test_local_parts_from_the_command_line(hub: Hub, copied_checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    parts = others(copied_checkpoint)
    for role in ("head", "clip"):
        shutil.move(parts[role], elsewhere)
    arguments = [str(copied_checkpoint), "-o", str(tmp_path / "bundle")]
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["export", *arguments])
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["export", *arguments, "--head", str(elsewhere), "--clip", str(elsewhere)])
    assert Bundle.open(tmp_path / "bundle").manifest.name == "tiny"


def test_a_repository_with_two_sizes(hub: Hub, tiny_checkpoint: Path) -> None:
    repository = hub.repositories["someone/LIRA"]
    shutil.copy(repository / "LIRA-tiny.pth", repository / "LIRA-8B.pth")
    sources = {**others(tiny_checkpoint), "base": "hub:someone/base"}
    with pytest.raises(
        LiraError, match=r"found LIRA-8B\.pth, LIRA-tiny\.pth, .* name it, hub:someone/LIRA/FILE"
    ):
        gather("hub:someone/LIRA", sources, PATTERNS)
    assert gather("hub:someone/LIRA/LIRA-8B.pth", sources, PATTERNS).name == "LIRA-8B"


def test_refusals(hub: Hub, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {**others(tiny_checkpoint), "base": "hub:someone/base"}
    with pytest.raises(LiraError, match=r"say with --head where the rest is"):
        gather("hub:someone/LIRA", {"base": "hub:someone/base"}, PATTERNS)
    with pytest.raises(LiraError, match="say with --base where that is"):
        gather("hub:someone/LIRA", others(tiny_checkpoint), PATTERNS)
    with pytest.raises(LiraError, match=r"hub:someone/nothing cannot be read .404 no such repository"):
        gather("hub:someone/LIRA", {**sources, "base": "hub:someone/nothing"}, PATTERNS)
    with pytest.raises(LiraError, match="no such file or folder"):
        gather("hub:someone/LIRA", {**sources, "head": "/nowhere/omg_seg.pth"}, PATTERNS)
    hub.checksums["LIRA-tiny.pth"] = "0" * 64
    with pytest.raises(LiraError, match=r"LIRA-tiny\.pth is not what the hub has .SHA-256 000000000000."):
        gather("hub:someone/LIRA", sources, PATTERNS)
    for text in ("hub:x", "hub:/x", "hub:a/b/../c"):
        with pytest.raises(LiraError, match="expected hub:OWNER/NAME"):
            HubSource.parse(text)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(LiraError, match=r"pip install 'lira-edge\[hub\]'"):
        gather("hub:someone/LIRA", sources, PATTERNS)
