"""Checkpoints from a stand-in for the hub, which has the listings of the published repositories."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError
from lira_engine.inspect import describe
from lira_engine.main import main
from lira_export.checkpoint import Checkpoint
from lira_export.hub import HubSource
from lira_export.parts import PARTS, Folder, find_part
from lira_export.sources import locate

LIRA = "echo840/LIRA"
BASES = {"2b": "OpenGVLab/InternVL2-2B", "8b": "OpenGVLab/InternVL2-8B"}
CLIP = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
COMMIT = "4e09d24" + "0" * 33


class Hub:
    """Repositories by name, in folders. A download copies a file into the cache."""

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
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            size = path.stat().st_size
            digest = self.checksums.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
            lfs = SimpleNamespace(sha256=digest, size=size) if size > 1024 else None
            name = path.relative_to(folder).as_posix()
            siblings.append(SimpleNamespace(rfilename=name, size=size, lfs=lfs))
        return SimpleNamespace(sha=revision or COMMIT, siblings=siblings)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None = None) -> str:
        assert revision is not None  # every file of the same commit
        self.downloads.append(f"{repo_id}/{filename}@{revision}")
        target = self.cache / repo_id.replace("/", "--") / revision / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.repositories[repo_id] / filename, target)
        return str(target)

    def names(self, repository: str) -> set[str]:
        """Return what was downloaded from a repository."""
        prefix = f"{repository}/"
        return {n.removeprefix(prefix).partition("@")[0] for n in self.downloads if n.startswith(prefix)}

    @staticmethod
    def http_error(kind: type[Exception], text: str) -> Exception:
        error = kind.__new__(kind, text)  # the library makes them from its HTTP client's responses
        error.args = (text,)
        return error


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Hub:
    """The published repositories, with a tiny LIRA's contents in both sizes."""
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in.hf_hub_download)
    for name in (LIRA, CLIP, *BASES.values()):
        stand_in.repositories[name] = tmp_path / "repositories" / name
        stand_in.repositories[name].mkdir(parents=True)
    fill_lira(stand_in.repositories[LIRA], tiny_checkpoint)
    shutil.copy(tiny_checkpoint / "open_clip_pytorch_model.bin", stand_in.repositories[CLIP])
    (stand_in.repositories[CLIP] / "README.md").write_text("not needed")
    base = next(tiny_checkpoint.glob("internvl2-*"))
    shutil.copytree(base, stand_in.repositories[BASES["2b"]], dirs_exist_ok=True)
    shard(base, stand_in.repositories[BASES["8b"]])
    shutil.copy(base / "model.safetensors", stand_in.repositories[BASES["8b"]] / "consolidated.safetensors")
    for name in BASES.values():
        (stand_in.repositories[name] / "modeling_internvl_chat.py").write_text("not needed")
        (stand_in.repositories[name] / "examples").mkdir()
        (stand_in.repositories[name] / "examples" / "image1.jpg").write_bytes(b"not needed")
    return stand_in


def fill_lira(folder: Path, checkpoint: Path) -> None:
    """Write the listing of echo840/LIRA."""
    for name in ("model_weight", "pretrained/omg_llava"):
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_bytes(b"")
    (folder / "README.md").write_text("not needed")
    for size in ("2B", "8B"):
        shutil.copy(checkpoint / "LIRA-tiny.pth", folder / "model_weight" / f"LIRA-{size}.pth")
        (folder / "pretrained" / f"lira_{size.lower()}_pre.pth").write_bytes(b"not needed")
    for name in ("omg_seg_convl.pth", "convnext_large_d_320_CocoPanopticOVDataset.pth"):
        shutil.copy(checkpoint / name, folder / "pretrained" / "omg_llava" / name)


def shard(base: Path, folder: Path) -> None:
    """Write a base model as two shards with their index."""
    tensors = load_file(base / "model.safetensors")
    halves = [sorted(tensors)[::2], sorted(tensors)[1::2]]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        save_file({key: tensors[key] for key in half}, folder / name)
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(base / name, folder)


def run(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit, match=f"^{code}$"):
        main(["export", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line of an export that ends with exit code 2."""
    capsys.readouterr()
    run(*arguments, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("ours", "theirs"), [
    (Hub.model_info, huggingface_hub.HfApi.model_info),
    (Hub.hf_hub_download, huggingface_hub.hf_hub_download),
])  # fmt: skip
def test_the_stand_in_takes_what_the_library_takes(
    ours: Callable[..., Any], theirs: Callable[..., Any]
) -> None:
    assert set(inspect.signature(ours).parameters) - {"self"} <= set(inspect.signature(theirs).parameters)


@pytest.mark.parametrize("size", ["2b", "8b"])
def test_one_command_exports_what_is_published(
    hub: Hub, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    """Only --config is given beside the size: the contents are a tiny LIRA's."""
    config = tiny_checkpoint / "config.json"
    own = json.loads(config.read_text())
    del own["name"]
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps(own))
    run(f"hub:{LIRA}", "--size", f"lira-{size}", "--config", sizes, "-o", tmp_path / "bundle")

    weights = f"model_weight/LIRA-{size.upper()}.pth"
    head = "pretrained/omg_llava/omg_seg_convl.pth"
    classes = "pretrained/omg_llava/convnext_large_d_320_CocoPanopticOVDataset.pth"
    assert hub.names(LIRA) == {weights, head, classes}
    assert hub.names(CLIP) == {"open_clip_pytorch_model.bin"}
    shards = ["model.safetensors"]
    if size == "8b":
        shards = ["model.safetensors.index.json", *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))]
    assert hub.names(BASES[size]) == {"config.json", "tokenizer.json", *shards}
    assert {name.rpartition("@")[2] for name in hub.downloads} == {COMMIT}

    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.name == f"LIRA-{size.upper()}"
    origins = bundle.manifest.provenance["hub"]
    assert origins["lira"] == {"repository": LIRA, "revision": COMMIT, "files": [weights]}
    assert {part: origin["repository"] for part, origin in origins.items()} == {
        "lira": LIRA, "head": LIRA, "classes": LIRA, "clip": CLIP, "base": BASES[size],
    }  # fmt: skip
    (_, rows), *_ = describe(tmp_path / "bundle")
    assert ("from", f"base: hub:{BASES[size]}@{COMMIT}") in rows
    printed = capsys.readouterr().out
    megabytes = (hub.repositories[LIRA] / weights).stat().st_size / 2**20
    assert f"hub:{LIRA}@4e09d2400000 {weights}: {megabytes:,.1f} MiB" in printed
    assert "GiB free" in printed


def test_a_target_that_is_taken_is_refused_before_the_first_byte(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    line = refused(capsys, f"hub:{LIRA}", "--size", "lira-2b", "-o", tmp_path / "bundle")
    assert "exists and holds files that lira-edge did not write" in line
    assert hub.downloads == []


def test_a_dry_run_downloads_configuration_and_tokenizer_alone(
    hub: Hub, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = tiny_checkpoint / "config.json"
    arguments = (f"hub:{LIRA}", "--size", "lira-8b", "--config", sizes, "-o", tmp_path / "bundle")
    run(*arguments, "--dry-run")
    assert {name.partition("@")[0] for name in hub.downloads} == {
        f"{BASES['8b']}/config.json", f"{BASES['8b']}/tokenizer.json",
    }  # fmt: skip
    shown = capsys.readouterr().out.splitlines()
    assert "downloaded now, to read it: config.json, tokenizer.json" in shown
    shards = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    parts = ("model_weight/LIRA-8B.pth", "pretrained/omg_llava/omg_seg_convl.pth")
    (listed,) = (line for line in shown if line.startswith("to download: ") and "GiB" not in line)
    assert {*parts, *shards, "open_clip_pytorch_model.bin"} < set(listed.split(": ")[1].split(", "))
    assert any("fp32 if the base model's weights turn out to be fp32" in line for line in shown)
    assert not (tmp_path / "bundle").exists()


def test_too_little_room_is_refused_before_the_first_byte(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    line = refused(capsys, f"hub:{LIRA}", "--size", "lira-2b", "-o", tmp_path / "bundle")
    assert "the download needs about" in line
    assert hub.downloads == []


def test_cached_files_need_no_room(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "/cached/file")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    locate(f"hub:{LIRA}", size="lira-2b", announce=lines.append)
    assert all(line.endswith(", there already") for line in lines[:-1])
    assert lines[-1].startswith("to download: 0.00 GiB; ")


def test_parts_from_the_hub_equal_those_from_a_folder(hub: Hub, tiny_checkpoint: Path) -> None:
    files = locate(f"hub:{LIRA}@v1", size="lira-8b", config=tiny_checkpoint / "config.json")
    expected, found = Checkpoint.open(tiny_checkpoint), Checkpoint.open(files)
    for name in ("llm.layers.0.q.weight", "semantic_encoder.mlp1.1.weight", "text2vision.model.0.weight"):
        assert found.tensor(name).equal(expected.tensor(name))
    assert f"{LIRA}/model_weight/LIRA-8B.pth@v1" in hub.downloads


def test_each_part_can_be_replaced(hub: Hub, tiny_checkpoint: Path) -> None:
    head = tiny_checkpoint / "omg_seg_convl.pth"
    given = {
        "head": str(head),
        "base": str(next(tiny_checkpoint.glob("internvl2-*"))),
        "clip": f"hub:{CLIP}@v2",
    }
    files = locate(f"hub:{LIRA}", size="lira-2b", given=given)
    assert files.paths["head"] == head
    assert files.base == next(tiny_checkpoint.glob("internvl2-*"))
    assert files.origins["clip"].revision == "v2"
    assert hub.names(BASES["2b"]) == set()


def test_a_named_file_decides_the_size(hub: Hub) -> None:
    files = locate(f"hub:{LIRA}/model_weight/LIRA-8B.pth")
    assert files.name == "LIRA-8B"
    assert files.origins["base"].repository == BASES["8b"]
    assert files.origins["head"].files == ("pretrained/omg_llava/omg_seg_convl.pth",)


def test_a_named_file_may_have_any_name(hub: Hub) -> None:
    hub.repositories["someone/parts"] = folder = hub.cache.parent / "parts"
    shutil.copytree(hub.repositories[BASES["2b"]], folder / "base" / "mine")
    shutil.copytree(hub.repositories[BASES["8b"]], folder / "base" / "mine-too")  # only begins like it
    shutil.copy(hub.repositories[CLIP] / "open_clip_pytorch_model.bin", folder / "trunk.bin")
    given = {"clip": "hub:someone/parts/trunk.bin@v3", "base": "hub:someone/parts/base/mine"}
    files = locate(f"hub:{LIRA}", size="lira-2b", given=given)
    assert files.origins["clip"].files == ("trunk.bin",)
    assert files.origins["base"].files[0] == "base/mine/config.json"


def test_safetensors_are_taken_if_there_is_no_bin(hub: Hub, tiny_checkpoint: Path) -> None:
    repository = hub.repositories[CLIP]
    (repository / "open_clip_model.safetensors").write_bytes(b"twin")
    assert locate(f"hub:{LIRA}", size="lira-2b").paths["clip"].suffix == ".bin"
    (repository / "open_clip_pytorch_model.bin").unlink()
    assert locate(f"hub:{LIRA}", size="lira-2b").paths["clip"].suffix == ".safetensors"


def test_a_repositorys_own_configuration_is_read(hub: Hub, tiny_checkpoint: Path) -> None:
    shutil.copy(tiny_checkpoint / "config.json", hub.repositories[LIRA])
    files = locate(f"hub:{LIRA}", size="lira-2b")
    assert (
        files.config is not None
        and files.config.read_bytes() == (tiny_checkpoint / "config.json").read_bytes()
    )


@pytest.fixture
def checkout(hub: Hub, tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """What upstream's download script leaves in its checkout, and the trunk beside the rest."""
    folder = tmp_path / "LIRA"
    fill_lira(folder, tiny_checkpoint)
    for name in BASES.values():
        shutil.copytree(hub.repositories[name], folder / "pretrained" / Path(name).name)
    (folder / ".git").mkdir()
    (folder / ".git" / "LIRA-2B.pth").write_bytes(b"hidden")
    shutil.copy(tiny_checkpoint / "open_clip_pytorch_model.bin", folder / "pretrained")
    return folder


@pytest.mark.parametrize("size", ["2b", "8b"])
def test_a_checkout_is_exported_as_it_is(
    hub: Hub, checkout: Path, tiny_checkpoint: Path, tmp_path: Path, size: str
) -> None:
    sizes = tiny_checkpoint / "config.json"
    run(checkout, "--size", f"lira-{size}", "--config", sizes, "-o", tmp_path / "bundle")
    assert hub.downloads == []
    files = Bundle.open(tmp_path / "bundle").manifest.provenance["checkpoint_files"]
    assert f"LIRA-{size.upper()}.pth" in files
    assert any(name.startswith(f"InternVL2-{size.upper()}/") for name in files)


def test_a_checkout_without_a_trunk_gets_the_published_one(
    hub: Hub, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "pretrained" / "open_clip_pytorch_model.bin").unlink()
    assert locate(checkout, size="lira-2b").origins["clip"].repository == CLIP
    assert hub.downloads == [f"{CLIP}/open_clip_pytorch_model.bin@{COMMIT}"]
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(LiraError, match=r"has nothing for the open_clip weights, .*: say --clip; .*\[hub\]"):
        locate(checkout, size="lira-2b")
    with pytest.raises(
        LiraError, match=r"expected exactly one LIRA\*\.pth: say --size lira-2b or --size lira-8b"
    ):
        locate(checkout)


def test_one_line_says_which_option_decides(
    hub: Hub, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    both = "--size lira-2b or --size lira-8b"
    assert both in refused(capsys, f"hub:{LIRA}", "-o", out)
    assert both in refused(capsys, checkout, "-o", out)
    assert both in refused(capsys, checkout / "model_weight", "-o", out)
    line = refused(capsys, checkout / "model_weight" / "LIRA-2B.pth", "-o", out)
    assert f"give {checkout}, with --size lira-2b" in line
    assert "expected one of lira-2b, lira-8b" in refused(capsys, checkout, "--size", "2b", "-o", out)
    (checkout / "model_weight" / "LIRA-2B.pth").unlink()
    line = refused(capsys, checkout, "--size", "lira-2b", "-o", out)
    assert "expected exactly one LIRA-2B.pth" in line and "there is model_weight/LIRA-8B.pth" in line
    assert not out.exists()


def test_the_command_line_takes_local_parts(copied_checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for role in ("head", "clip"):
        shutil.move(next(copied_checkpoint.glob(PARTS[role][0][0])), elsewhere)
    arguments = (copied_checkpoint, "-o", tmp_path / "bundle")
    run(*arguments, code=2)
    run(*arguments, "--head", elsewhere, "--clip", elsewhere / "open_clip_pytorch_model.bin")
    assert Bundle.open(tmp_path / "bundle").manifest.name == "tiny"


def test_files_at_the_top_go_before_those_in_folders(copied_checkpoint: Path) -> None:
    (copied_checkpoint / "older").mkdir()
    shutil.copy(copied_checkpoint / "LIRA-tiny.pth", copied_checkpoint / "older")
    assert locate(copied_checkpoint).paths["lira"] == copied_checkpoint / "LIRA-tiny.pth"
    shutil.move(copied_checkpoint / "LIRA-tiny.pth", copied_checkpoint / "older" / "LIRA-other.pth")
    with pytest.raises(LiraError, match=r"found older/LIRA-other\.pth, older/LIRA-tiny\.pth"):
        locate(copied_checkpoint)


def test_a_trunk_as_safetensors_does_not_make_the_top_a_base_model() -> None:
    names = ("config.json", "open_clip_model.safetensors", "base/config.json", "base/model.safetensors")
    assert find_part("base", Folder(Path("x"), names), None).names[0] == "base/config.json"


def test_other_folders_with_a_configuration_are_not_taken_for_the_base_model(copied_checkpoint: Path) -> None:
    (copied_checkpoint / "deepspeed").mkdir()
    (copied_checkpoint / "deepspeed" / "config.json").write_text("{}")
    assert locate(copied_checkpoint).base.name == "internvl2-tiny"


def test_data_sets_are_not_searched(copied_checkpoint: Path) -> None:
    deep = copied_checkpoint.joinpath(*"data")
    deep.mkdir(parents=True)
    head = copied_checkpoint / "omg_seg_convl.pth"
    shutil.move(head, deep)
    assert locate(copied_checkpoint).paths["head"].parent == deep
    deeper = deep / "images"
    deeper.mkdir()
    shutil.move(deep / head.name, deeper)
    with pytest.raises(LiraError, match="found nothing for the OMG-Seg head"):
        locate(copied_checkpoint)


def test_an_empty_configuration_counts_as_none(copied_checkpoint: Path) -> None:
    (copied_checkpoint / "config.json").write_bytes(b"\n")
    assert locate(copied_checkpoint).config is None


def test_wrong_sources_are_refused_with_what_was_found(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["someone/LIRA"] = hub.repositories[LIRA] / "model_weight"
    with pytest.raises(LiraError, match=r"found nothing for the OMG-Seg head, .* or say --head"):
        locate("hub:someone/LIRA", size="lira-2b")
    with pytest.raises(LiraError, match=r"hub:someone/nothing cannot be read .404 no such repository"):
        locate(f"hub:{LIRA}", size="lira-2b", given={"base": "hub:someone/nothing"})
    with pytest.raises(LiraError, match=r"--head /nowhere/omg_seg.pth: no such file or folder"):
        locate(f"hub:{LIRA}", size="lira-2b", given={"head": "/nowhere/omg_seg.pth"})
    with pytest.raises(LiraError, match=f"hub:{LIRA}: found README.md, .* expected model_weight/LIRA-9B.pth"):
        locate(f"hub:{LIRA}/model_weight/LIRA-9B.pth")
    hub.checksums["LIRA-2B.pth"] = "0" * 64
    with pytest.raises(LiraError, match=r"LIRA-2B\.pth is not what the hub has .SHA-256 000000000000."):
        locate(f"hub:{LIRA}", size="lira-2b")
    for text in ("hub:x", "hub:/x", "hub:a/b/../c"):
        with pytest.raises(LiraError, match="expected hub:OWNER/NAME"):
            HubSource.parse(text)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(LiraError, match=r"pip install 'lira-edge\[hub\]'"):
        locate(f"hub:{LIRA}", size="lira-2b")


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise huggingface_hub.errors.HTTPError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=unreachable))
    with pytest.raises(
        LiraError, match=r"cannot be read .Name or service not known.: check the name and the network"
    ):
        locate(f"hub:{LIRA}", size="lira-2b")
