"""Random checkpoints: the reader accepts them, seeds repeat them, interrupts leave nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lira_engine.errors import LiraError
from lira_engine.main import main
from lira_export.checkpoint import Checkpoint
from lira_export.config import LiraConfig
from lira_export.model.language_model import Layer
from lira_export.synthetic import sizes
from lira_export.synthetic.presets import Preset, preset
from lira_export.synthetic.streams import write_pth
from lira_export.synthetic.synthesize import NOTE, synthesize
from lira_export.tokenizer import special_tokens


@pytest.fixture
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point of pyproject.toml, whatever the installed distribution says."""
    found = metadata.entry_points
    entry = metadata.EntryPoint("lira-nano", "lira_nano.preset:preset", sizes.GROUP)

    def entry_points(group: str) -> Any:
        return metadata.EntryPoints([entry]) if group == sizes.GROUP else found(group=group)

    monkeypatch.setattr(metadata, "entry_points", entry_points)


def small(name: str, **llm: Any) -> Preset:
    """Return a published size with less width and depth and its own vocabulary."""
    made = preset(name)
    config = json.loads(json.dumps(made.base_config))
    config["llm_config"] |= {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, **llm}
    config["vision_config"] |= {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    return replace(made, base_config=config, lora_rank=2)


SMALL = {
    "lira-2b": small("lira-2b", num_attention_heads=4, num_key_value_heads=2),
    "lira-qwen2-1.5b": small("lira-qwen2-1.5b", num_attention_heads=4, num_key_value_heads=2),
}


@pytest.fixture(scope="module", params=SMALL)
def synthetic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "model"
    return synthesize(SMALL[request.param], folder, shard_bytes=4 << 20)


def test_the_reader_accepts_a_synthetic_checkpoint(synthetic: Path) -> None:
    checkpoint = Checkpoint.open(synthetic)
    assert checkpoint.config.synthetic and not checkpoint.notes
    assert checkpoint.stored_dtype == "bfloat16"
    assert "meaningless" in (synthetic / NOTE).read_text()
    _, rows = checkpoint.describe()
    assert any("files)" in row[0] for row in rows)


def test_activations_keep_a_size_of_about_one(synthetic: Path) -> None:
    checkpoint = Checkpoint.open(synthetic)
    layer = checkpoint.load_part(lambda: Layer(checkpoint.config.llm), "llm.layers.1.")
    x = torch.randn(1, 5, 32)
    zero = torch.zeros(5, layer.q.weight.shape[0] // 4)
    out, _ = layer(x, (zero + 1, zero), torch.ones(5, 5, dtype=torch.bool).tril(), None)
    assert 0.1 < float((out - x).std()) < 3


def test_special_tokens_have_the_published_ids(synthetic: Path) -> None:
    from lira_export.tokenizer import read_tokenizer

    checkpoint = Checkpoint.open(synthetic)
    tokenizer = read_tokenizer(checkpoint.base)
    tokens = special_tokens(tokenizer, checkpoint.config)
    text = "Please segment the left one. Größe 图 \U0001f600"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    if checkpoint.config.llm.family == "internlm2":
        assert (tokens.eos, tokens.seg, tokens.image_id) == ((92542, 2), 92553, 92558)
    else:
        assert (tokens.eos, tokens.seg, tokens.image_id) == ((151645, 151643), 151657, 151662)


def test_shards_hold_what_their_index_says(synthetic: Path) -> None:
    base = Checkpoint.open(synthetic).base
    index = json.loads((base / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    found: dict[str, str] = {}
    size = 0
    for shard in shards:
        with safe_open(base / shard, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                found[name] = shard
                size += opened.get_tensor(name).nbytes
    assert found == index["weight_map"] and size == index["metadata"]["total_size"]


def test_a_written_state_dict_is_loaded_by_torch(tmp_path: Path) -> None:
    shapes = {"a": (3, 5), "b": (7,), "c": (1, 1)}

    def pieces(name: str, shape: tuple[int, ...]) -> Any:
        values = torch.arange(torch.Size(shape).numel(), dtype=torch.float32) + ord(name)
        yield from values.split(4)

    write_pth(tmp_path / "x.pth", shapes, torch.float16, pieces, wrapper="state_dict")
    for mapped in (True, False):
        loaded = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mapped)["state_dict"]
        assert {name: tuple(t.shape) for name, t in loaded.items()} == shapes
        for name, tensor in loaded.items():
            assert tensor.dtype == torch.float16
            assert tensor.flatten().tolist() == [ord(name) + i for i in range(tensor.numel())]


def test_presets_have_the_published_sizes() -> None:
    configs = {name: preset(name).config for name in ("lira-2b", "lira-8b", "lira-qwen2-1.5b")}
    llm = {name: config.llm for name, config in configs.items()}
    assert [c.vocab_size for c in llm.values()][:2] == [92559, 92559]
    assert [c.head_dim for c in llm.values()] == [128, 128, 128]
    assert [c.rope_scaling_factor for c in llm.values()] == [2.0, 2.0, None]
    assert configs["lira-8b"].pixel.grid == 16


def test_pyproject_declares_the_preset_of_nano() -> None:
    root = Path(__file__).parents[2]
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    assert f'[project.entry-points."{sizes.GROUP}"]\nlira-nano = "lira_nano.preset:preset"\n' in text


def test_sizes_of_other_packages_are_listed_and_loaded(
    nano: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sizes.size_names() == ("lira-2b", "lira-8b", "lira-qwen2-1.5b", "lira-nano")
    assert preset("lira-nano").name == "LIRA-nano"
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["synthesize", "lira-9b", "-o", str(tmp_path / "x")])
    listed = "expected one of lira-2b, lira-8b, lira-qwen2-1.5b, lira-nano"
    assert listed in capsys.readouterr().err


def test_the_preset_of_nano_loads_nothing_of_its_training() -> None:
    code = (
        "import json, sys; from lira_nano.preset import preset; preset()\n"
        "print(json.dumps([m.partition('.')[2] for m in sys.modules if m.startswith('lira_nano.')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {
        "preset",
        "architecture",
        "scenes",
        "sprites",
        "texts",
        "tokenizer",
    }


def test_the_command_line_synthesizes_nano(
    nano: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["synthesize", "lira-nano", "-o", str(tmp_path / "nano"), "--seed", "7"])
    shown = capsys.readouterr().out
    assert "SYNTHETIC" in shown
    again = f"reproduce: lira-edge synthesize lira-nano --output {tmp_path / 'nano'} --seed 7 --overwrite"
    assert shown.splitlines()[-1] == again
    found = LiraConfig.from_files(tmp_path / "nano" / "config.json", tmp_path / "nano", "nano")
    assert (
        found.synthetic and found.llm.vocab_size == Checkpoint.open(tmp_path / "nano").config.llm.vocab_size
    )


def test_the_same_seed_gives_the_same_bytes(nano: None, tmp_path: Path) -> None:
    names = ("LIRA-nano.pth", "internvl2-nano/model-00001-of-00001.safetensors")
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthesize("lira-nano", tmp_path / folder, seed=seed)
    a, b, c = ([(tmp_path / folder / name).read_bytes() for name in names] for folder in "abc")
    assert a == b and a[0] != c[0] and a[1] != c[1]


def test_an_unknown_size_and_a_full_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LiraError, match=r"size 'lira-3b': expected one of lira-2b, lira-8b"):
        synthesize("lira-3b", tmp_path / "x")
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LiraError, match="has 5120 MiB of disk left, the checkpoint needs about 1"):
        synthesize("lira-8b", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(nano: None, tmp_path: Path) -> None:
    def interrupt(file: str, written: int, total: int) -> None:
        if written > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize("lira-nano", tmp_path / "x", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    synthesize("lira-nano", tmp_path / "x")
    with pytest.raises(LiraError, match="overwrite"):
        synthesize("lira-nano", tmp_path / "x")
    synthesize("lira-nano", tmp_path / "x", overwrite=True)
