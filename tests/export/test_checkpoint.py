"""What a checkpoint folder must hold, and the error if it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lira_engine.errors import LiraError
from lira_export.checkpoint import Checkpoint, describe
from lira_export.config import LiraConfig

LLM = "llm.base_model.model.model."
TABLES = ("model.tok_embeddings.weight", "output.base_layer.weight", "output.lora_B.default.weight")


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    tensors = torch.load(path, weights_only=True)
    edit(tensors)
    torch.save(tensors, path)


def error(folder: Path) -> str:
    with pytest.raises(LiraError) as caught:
        Checkpoint.open(folder)
    return str(caught.value)


def test_a_written_checkpoint_is_read_back(tiny_checkpoint: Path, make_lira: Any) -> None:
    found, expected = Checkpoint.open(tiny_checkpoint).load_model(), make_lira()
    for (name, parameter), (_, original) in zip(
        found.named_parameters(), expected.named_parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter, original, rtol=0, atol=2e-7, msg=name
        )  # LoRA is taken out and merged


def test_parts_hold_the_same_tensors_as_the_whole(tiny_checkpoint: Path) -> None:
    from lira_export.model.lira import PixelEncoder

    checkpoint = Checkpoint.open(tiny_checkpoint)
    whole = checkpoint.load_model().pixel_encoder
    part = checkpoint.load_part(lambda: PixelEncoder(checkpoint.config, 2), "pixel_encoder.")
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(part(pixels).queries, whole(pixels).queries)
    assert torch.equal(part.mask_decoder.class_embed, checkpoint.class_embed)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LIRA-tiny.pth", "LIRA*.pth"),
        ("omg_seg_convl.pth", "omg_seg*.pth"),
        ("open_clip_pytorch_model.bin", "open_clip*.bin"),
        ("convnext_large_d_320_CocoPanopticOVDataset.pth", "*OVDataset*.pth"),
        ("internvl2-tiny/model.safetensors", "*.safetensors"),
        ("internvl2-tiny/config.json", "config.json"),
    ],
)
def test_a_missing_file_is_named(copied_checkpoint: Path, name: str, says: str) -> None:
    (copied_checkpoint / name).unlink()
    assert says in error(copied_checkpoint)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "no such folder" in error(tmp_path / "nothing")


def test_two_files_for_one_part_are_refused(copied_checkpoint: Path) -> None:
    (copied_checkpoint / "LIRA-other.pth").write_bytes(b"")
    assert "LIRA-other.pth, LIRA-tiny.pth" in error(copied_checkpoint)


def test_tensors_that_do_not_fit_are_all_listed_by_their_upstream_names(copied_checkpoint: Path) -> None:
    def damage(tensors: dict[str, Any]) -> None:
        del tensors["projector.model.query_proj.bias"]
        tensors["projector.model.model.0.bias"] = torch.zeros(3)
        tensors["projector.model.extra"] = torch.zeros(2)
        del tensors[f"{LLM}layers.1.attention.wo.lora_B.default.weight"]

    change(copied_checkpoint / "LIRA-tiny.pth", damage)
    message = error(copied_checkpoint)
    assert "4 tensors do not fit" in message
    assert "missing projector.model.query_proj.bias (80,) in LIRA-tiny.pth" in message
    assert "misshapen projector.model.model.0.bias: expected (24,), found (3,)" in message
    assert "unexpected projector.model.extra (2,)" in message
    assert f"missing {LLM}layers.1.attention.wo.lora_B.default.weight (24, 2)" in message


def test_many_tensors_that_do_not_fit_are_counted_by_kind(copied_checkpoint: Path) -> None:
    def damage(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            tensors[f"extra.{name}"] = tensors.pop(name)

    change(copied_checkpoint / "LIRA-tiny.pth", damage)
    message = error(copied_checkpoint)
    assert "20 tensors do not fit the configuration (10 missing, 0 misshapen, 10 unexpected)" in message
    assert len(message) < 300 + len(str(copied_checkpoint)) and message.count("lora_A") == 1


def test_a_tensor_that_is_left_over_is_refused_in_every_file(copied_checkpoint: Path) -> None:
    """A second head's, too: only a tied head is replaced by the embeddings."""
    left = f"{LLM.removesuffix('model.')}output.second.weight"
    change(copied_checkpoint / "LIRA-tiny.pth", lambda tensors: tensors.update({left: torch.zeros(2)}))
    base = copied_checkpoint / "internvl2-tiny" / "model.safetensors"
    save_file({**load_file(base), "vision_model.second.bias": torch.zeros(3)}, base)
    message = error(copied_checkpoint)
    assert "2 tensors do not fit" in message
    assert f"unexpected {left} (2,) in LIRA-tiny.pth" in message
    assert "unexpected vision_model.second.bias (3,) in internvl2-tiny/" in message


def test_a_base_model_of_another_size_is_refused(copied_checkpoint: Path) -> None:
    path = copied_checkpoint / "internvl2-tiny" / "model.safetensors"
    tensors = load_file(path)
    tensors["language_model.model.layers.0.attention.wqkv.weight"] = torch.zeros(40, 24)
    save_file(tensors, path)
    assert "wqkv.weight: expected (48, 24), found (40, 24) in internvl2-tiny/" in error(copied_checkpoint)


def test_a_file_without_adapters_is_refused(copied_checkpoint: Path) -> None:
    def damage(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "lora" in name]:
            del tensors[name]

    change(copied_checkpoint / "LIRA-tiny.pth", damage)
    assert "no LoRA weights found" in error(copied_checkpoint)


def test_class_embeddings_of_other_classes_are_refused(copied_checkpoint: Path) -> None:
    torch.save(torch.zeros(9, 2, 10), next(copied_checkpoint.glob("*OVDataset*")))
    assert "shape (9, 2, 10), expected (5, prototypes, 10)" in error(copied_checkpoint)


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pth_that_holds_more_than_tensors_is_not_unpickled(copied_checkpoint: Path, tmp_path: Path) -> None:
    change(
        copied_checkpoint / "LIRA-tiny.pth", lambda tensors: tensors.update(trap=Trap(tmp_path / "sprung"))
    )
    assert "holds more than tensors" in error(copied_checkpoint)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["LIRA-tiny.pth", "omg_seg_convl.pth", "internvl2-tiny/model.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(copied_checkpoint: Path, name: str, keep: float) -> None:
    path = copied_checkpoint / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert name.rpartition("/")[2] in error(copied_checkpoint)


@pytest.mark.parametrize("content", [{}, [1, 2], 7, {"state_dict": {}}])
def test_a_pth_without_tensors_is_refused(copied_checkpoint: Path, content: Any) -> None:
    torch.save(content, copied_checkpoint / "LIRA-tiny.pth")
    assert "no tensors found" in error(copied_checkpoint)


@pytest.mark.parametrize("wrapper", ["state_dict", "module"])
def test_a_wrapped_state_dict_is_unwrapped(copied_checkpoint: Path, wrapper: str) -> None:
    path = copied_checkpoint / "LIRA-tiny.pth"
    torch.save({wrapper: torch.load(path, weights_only=True)}, path)
    Checkpoint.open(copied_checkpoint)


def write_index(base: Path, weight_map: object) -> None:
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_by_their_index(copied_checkpoint: Path) -> None:
    base = copied_checkpoint / "internvl2-tiny"
    tensors = load_file(base / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, base / shard)
    (base / "model.safetensors").unlink()
    write_index(base, {name: shard for shard, members in shards.items() for name in members})
    Checkpoint.open(copied_checkpoint)
    (base / "b.safetensors").unlink()
    assert "shard b.safetensors is missing (2 expected)" in error(copied_checkpoint)


@pytest.mark.parametrize("name", ["../LIRA-tiny.pth", "/etc/passwd", "..", "", 3])
def test_an_index_that_names_a_file_outside_is_refused(copied_checkpoint: Path, name: object) -> None:
    write_index(copied_checkpoint / "internvl2-tiny", {"mlp1.0.weight": name})
    assert "model.safetensors.index.json" in error(copied_checkpoint)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": {}}}', "{}"])
def test_a_file_that_is_no_index_is_refused(copied_checkpoint: Path, content: str) -> None:
    (copied_checkpoint / "internvl2-tiny" / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in error(copied_checkpoint)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ("{}", "'pixel_encoder' is missing"),
        ('{"pixel_encoder": 3}', "config.json"),
        ('{"pixel_encoder": {"panoptic_head": []}}', "config.json"),
    ],
)
def test_a_damaged_configuration_is_refused(copied_checkpoint: Path, content: str, says: str) -> None:
    (copied_checkpoint / "config.json").write_text(content)
    assert says in error(copied_checkpoint)


def test_configuration_of_upstream_needs_the_base_models_file_only(tmp_path: Path) -> None:
    """Published sizes of LIRA-2B: InternVL2-2B's config.json, upstream's constants for the rest."""
    base = tmp_path / "LIRA-2B" / "InternVL2-2B"
    base.mkdir(parents=True)
    llm = {
        "model_type": "internlm2", "vocab_size": 92553, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768, "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }  # fmt: skip
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 448, "patch_size": 14,
    }  # fmt: skip
    config = {"llm_config": llm, "vision_config": vision, "downsample_ratio": 0.5}
    (base / "config.json").write_text(json.dumps(config))
    found = LiraConfig.from_files(None, base, "LIRA-2B")
    assert (found.name, found.llm.vocab_size, found.llm.head_dim) == ("LIRA-2B", 92559, 128)
    assert (found.vision.tokens_per_tile, found.pixel.grid, found.pixel.shuffled_channels) == (256, 16, 6144)


def test_rows_that_a_vocabulary_lacks_are_added_as_upstream_does(copied_checkpoint: Path) -> None:
    def shorten(tensors: dict[str, Any]) -> None:
        for name in TABLES:
            key = f"llm.base_model.model.{name}"
            tensors[key] = tensors[key][:-2]

    before = Checkpoint.open(copied_checkpoint).tensor("llm.tok_embeddings.weight")
    change(copied_checkpoint / "LIRA-tiny.pth", shorten)
    checkpoint = Checkpoint.open(copied_checkpoint)
    table = checkpoint.tensor("llm.tok_embeddings.weight")
    assert torch.equal(table[:-2], before[:-2])
    torch.testing.assert_close(table[-2:], before[:-2].mean(0).expand(2, -1))
    assert len(checkpoint.notes) == 3 and "2 added" in checkpoint.notes[0]


def test_describe_lists_files_and_sizes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert describe(tmp_path) is None
    described = describe(tiny_checkpoint)
    assert described is not None
    title, rows = described
    assert title == "checkpoint tiny"
    cells = {row[0]: row[1:] for row in rows}
    assert cells["LIRA-tiny.pth"][-1] == "float32"
    assert cells["LoRA"] == ("rank 2, alpha 4",)
    assert "2 layers, width 24, 6 heads, 3 KV heads, 12 tokens" in cells["language model"][0]


def test_describe_says_what_is_missing(copied_checkpoint: Path) -> None:
    (copied_checkpoint / "omg_seg_convl.pth").unlink()
    with pytest.raises(LiraError, match=r"omg_seg\*\.pth"):
        describe(copied_checkpoint)
