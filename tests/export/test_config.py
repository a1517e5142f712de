"""Configurations: kinds and ranges of values, spellings, adapters, tokenizers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from lira_engine.errors import LiraError
from lira_export.checkpoint import Checkpoint
from lira_export.config import LiraConfig
from lira_export.json_files import read_json
from lira_export.prompts import prompts_of
from lira_export.tokenizer import read_tokenizer

Data = dict[str, Any]


@pytest.fixture
def own(copied_checkpoint: Path) -> Path:
    return copied_checkpoint / "config.json"


def edit(path: Path, change: Callable[[Data], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def read(path: Path) -> LiraConfig:
    config = LiraConfig.from_files(path, path.parent, "tiny")
    prompts_of(config)
    return config


def error(path: Path) -> str:
    started = time.process_time()
    with pytest.raises(LiraError) as caught:
        read(path)
    assert time.process_time() - started < 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("llm_config", [1], "llm_config: found [1], expected an object"),
        ("llm_config", None, "llm_config: found null, expected an object"),
        ("llm_config.hidden_size", "24", 'llm_config.hidden_size: found "24", expected an integer'),
        ("llm_config.hidden_size", 24.0, "llm_config.hidden_size: found 24.0, expected an integer"),
        ("llm_config.hidden_size", True, "llm_config.hidden_size: found true, expected an integer"),
        ("llm_config.hidden_size", -24, "llm_config.hidden_size: found -24, expected an integer from 1"),
        ("llm_config.hidden_size", 25, "hidden_size is 25"),
        ("llm_config.num_hidden_layers", 10**9, "found 1000000000, expected an integer from 1 to 1000"),
        ("llm_config.vocab_size", 10**400, "found an integer of 1329 bits, expected an integer from 1"),
        ("llm_config.num_attention_heads", 0, "found 0, expected an integer from 1"),
        ("llm_config.num_key_value_heads", None, "num_key_value_heads: found null"),
        ("llm_config.num_key_value_heads", 4, "num_attention_heads is 6 and num_key_value_heads 4"),
        ("llm_config.rms_norm_eps", float("nan"), "rms_norm_eps: found NaN, expected a finite number"),
        ("llm_config.rope_theta", float("inf"), "rope_theta: found Infinity, expected a finite number"),
        ("llm_config.rope_theta", 10**400, "rope_theta: found an integer of 1329 bits, expected a finite"),
        ("llm_config.model_type", ["internlm2"], "model_type: found [\"internlm2\"], expected a text"),
        ("llm_config.model_type", "llama", "language model 'llama': expected one of internlm2"),
        ("llm_config.hidden_act", "gelu", 'hidden_act: found "gelu", expected "silu"'),
        ("llm_config.num_attention_heads", 8, "hidden_size is 24 and num_attention_heads 8"),  # rotary: pairs
        ("llm_config.head_dim", 128, "head_dim: found 128, expected 4"),
        ("llm_config.use_sliding_window", True, "use_sliding_window: found true, expected false"),
        ("llm_config.rope_scaling", "dynamic", 'rope_scaling: found "dynamic", expected an object'),
        ("llm_config.rope_scaling", {"type": "dynamic"}, "rope_scaling: key 'factor' is missing"),
        ("llm_config.rope_scaling", {"type": "linear", "factor": 2.0}, 'type: found "linear", expected'),
        ("llm_config.rope_scaling", {"type": "dynamic", "factor": 0.5}, "factor: found 0.5, expected"),
        ("vision_config.image_size", 29, "image_size is 29"),
        ("vision_config.qk_normalization", True, "qk_normalization: found true, expected false"),
        ("downsample_ratio", "0.5", 'downsample_ratio: found "0.5", expected a number'),
        ("downsample_ratio", 0, "downsample_ratio: found 0, expected a finite number above 0"),
        ("downsample_ratio", 0.3, "downsample_ratio: found 0.3, expected 1 over an integer"),
        ("select_layer", -2, "select_layer: found -2, expected -1"),
        ("ps_version", "v1", 'ps_version: found "v1", expected "v2"'),
        ("pixel_encoder.backbone.dims", [8, 12, 16], "dims: found [8, 12, 16], expected four integers"),
        ("pixel_encoder.backbone.dims", [8, 12, 16, "20"], "expected a list of integers from 1"),
        ("pixel_encoder.image_size", 100, "image_size is 100"),
        ("pixel_encoder.panoptic_head.pixel_decoder.num_groups", 5, "feat_channels is 16 and num_groups 5"),
        ("projector.cross_head_num", 7, "cross_head_num: found 7, expected a divisor"),
        ("lora.lora_alpha", "8", 'lora_alpha: found "8", expected a number'),
        ("lora.lora_alpha", 0, "lora_alpha: found 0, expected a finite number above 0"),
        ("lora.r", 0, "lora.r: found 0, expected an integer from 1"),
        ("lora.use_dora", True, "use_dora: found true, expected none: it cannot be merged"),
        ("lora.rank_pattern", {"wo": 8}, "rank_pattern: found"),
        ("lora.bias", "all", 'bias: found "all", expected none'),
        ("lora.init_lora_weights", "pissa", 'init_lora_weights: found "pissa"'),
        ("lora.lora_beta", 1, "lora: unknown key 'lora_beta'"),
        ("lora.scaling", 3.0, "scaling: found 3.0, expected 2, which r and lora_alpha give"),
        ("special_token_ids", {"[SEG]": "6"}, 'special_token_ids.[SEG]: found "6", expected an integer'),
        ("prompts", "hello", 'prompts: found "hello", expected an object'),
        ("prompts", {"system": 3}, "prompts.system: found 3"),
        ("min_dynamic_patch", 9, "min_dynamic_patch: found 9, expected at most max_dynamic_patch, 6"),
        ("preprocessing", {"tile": {"std": [0.2, 0.2, 0]}}, "std: found [0.2, 0.2, 0], expected a list of 3"),
        ("preprocessing", {"pixel": {"image_mean": [0.5]}}, "image_mean: found [0.5], expected a list of 3"),
        ("context_length", "long", 'context_length: found "long", expected an integer'),
        ("name", 7, "name: found 7, expected a text"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_before_any_work(own: Path, key: str, value: Any, says: str) -> None:
    def change(data: Data) -> None:
        *path, last = key.split(".")
        for part in path:
            data = data[part]
        data[last] = value

    edit(own, change)
    message = error(own)
    assert says in message and len(message) < 300 + len(str(own))


@pytest.mark.parametrize("key", ["llm_config", "vision_config", "projector", "lora", "pixel_encoder"])
def test_a_missing_section_is_named(own: Path, key: str) -> None:
    edit(own, lambda data: data.pop(key))
    assert f"config.json: key '{key}' is missing" in error(own)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"name": "\xe9"}', "not JSON ('utf-8' codec"),
        (b"[]", "holds a JSON list, expected an object"),
        (b"9" * 5000, "not JSON"),
        (b"<html>no</html>", "is a web page"),
    ],
)
def test_files_that_are_no_configuration_are_refused(own: Path, content: bytes, says: str) -> None:
    own.write_bytes(content)
    assert says in error(own)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_read(own: Path, encoding: str) -> None:
    expected = read(own)
    own.write_bytes(own.read_text().encode(encoding))
    assert read(own) == expected
    assert read_json(own, "a configuration")["name"] == "tiny"


@pytest.mark.parametrize(
    ("change", "theta", "factor"),
    [
        ({"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 1e6, 2.0),
        ({"rope_theta": 1e6, "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 1e6, 2.0),
        ({"rope_theta": 1e6, "rope_scaling": {"rope_type": "default"}}, 1e6, None),
        ({"rope_theta": 1e6, "rope_scaling": None}, 1e6, None),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2.0}}, 1e6, 2.0),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6, None),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}}, 1e6, None),
    ],
)
def test_all_spellings_of_the_rotary_embedding_are_read(
    own: Path, change: Data, theta: float, factor: float | None
) -> None:
    def replace(data: Data) -> None:
        del data["llm_config"]["rope_theta"]
        data["llm_config"].update(change)

    edit(own, replace)
    found = read(own).llm
    assert (found.rope_theta, found.rope_scaling_factor) == (theta, factor)


def test_two_spellings_that_differ_are_refused(own: Path) -> None:
    both = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    edit(own, lambda data: data["llm_config"].update(both))
    assert "rope_theta: found 10000, expected 500000, as rope_parameters has it" in error(own)


# --- adapters


def merged(folder: Path) -> torch.Tensor:
    return Checkpoint.open(folder).tensor("llm.layers.0.o.weight")


def parts(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Base weight, and B @ A of its adapter."""
    from safetensors.torch import load_file

    lira = torch.load(folder / "LIRA-tiny.pth", weights_only=True)
    stem = "llm.base_model.model.model.layers.0.attention.wo.lora_{}.default.weight"
    base = load_file(folder / "internvl2-tiny" / "model.safetensors")
    weight = base["language_model.model.layers.0.attention.wo.weight"]
    return weight, lira[stem.format("B")] @ lira[stem.format("A")]


@pytest.mark.parametrize(
    ("lora", "scale"),
    [
        ({"r": 2, "lora_alpha": 4}, 2.0),
        ({"r": 2, "lora_alpha": 3}, 1.5),
        ({"r": 2}, 2.0),
        ({}, 2.0),
        ({"r": 2, "lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
        ({"r": 2, "lora_alpha": 4, "lora_dropout": 0.05, "bias": "none", "task_type": "CAUSAL_LM"}, 2.0),
    ],
)
def test_the_scale_of_the_adapters_follows_rank_and_alpha(
    copied_checkpoint: Path, own: Path, lora: Data, scale: float
) -> None:
    edit(own, lambda data: data.update(lora=lora))
    weight, product = parts(copied_checkpoint)
    torch.testing.assert_close(merged(copied_checkpoint), weight + scale * product, rtol=0, atol=2e-7)
    assert Checkpoint.open(copied_checkpoint).lora_scale == pytest.approx(scale)


def test_a_rank_that_the_file_does_not_have_is_refused(copied_checkpoint: Path, own: Path) -> None:
    edit(own, lambda data: data["lora"].update(r=16))
    with pytest.raises(LiraError, match=r"lora\.r is 16, the adapters in LIRA-tiny\.pth have rank 2"):
        Checkpoint.open(copied_checkpoint)


def test_added_rows_and_converted_dtypes_are_noted(
    copied_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lira_engine.main import main

    path = copied_checkpoint / "LIRA-tiny.pth"
    tensors = torch.load(path, weights_only=True)
    table = "llm.base_model.model.model.tok_embeddings.weight"
    tensors[table] = tensors[table][:-3].double()
    torch.save(tensors, path)
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["export", str(copied_checkpoint), "-o", str(tmp_path / "bundle")])
    printed = capsys.readouterr().out
    assert f"{table}: 9 rows, 3 added (mean)" in printed
    assert "LIRA-tiny.pth: 1 tensors are float64, read as float32" in printed


def test_more_missing_rows_than_liras_tokens_are_refused(copied_checkpoint: Path) -> None:
    path = copied_checkpoint / "LIRA-tiny.pth"
    tensors = torch.load(path, weights_only=True)
    table = "llm.base_model.model.model.tok_embeddings.weight"
    whole = tensors[table]
    for lacking, good in ((6, True), (7, False)):
        tensors[table] = whole[:-lacking]
        torch.save(tensors, path)
        if good:
            assert "6 added" in Checkpoint.open(copied_checkpoint).notes[0]
        else:
            with pytest.raises(LiraError, match=r"misshapen .* expected \(12, 24\), found \(5, 24\)"):
                Checkpoint.open(copied_checkpoint)


def test_rows_that_the_head_lacks_are_the_mean_of_the_others(copied_checkpoint: Path) -> None:
    path = copied_checkpoint / "LIRA-tiny.pth"
    tensors = torch.load(path, weights_only=True)
    head = "llm.base_model.model.output"
    tensors[f"{head}.base_layer.weight"] = tensors[f"{head}.base_layer.weight"][:-2]
    tensors[f"{head}.lora_B.default.weight"] = tensors[f"{head}.lora_B.default.weight"][:-2]
    torch.save(tensors, path)
    found = Checkpoint.open(copied_checkpoint).tensor("llm.lm_head.weight")
    torch.testing.assert_close(found[-2:], tensors[f"{head}.base_layer.weight"].mean(0).expand(2, -1))


# --- tokenizer


@pytest.mark.parametrize(
    "change",
    [
        {"padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "<unk>"}},
        {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
def test_padding_and_truncation_of_a_tokenizer_are_removed(
    copied_checkpoint: Path, change: Data, mark: str
) -> None:
    base, text = copied_checkpoint / "internvl2-tiny", "red ball red ball"
    expected = read_tokenizer(base).encode(text).ids
    edit(base / "tokenizer.json", lambda data: data.update(change))
    (base / "tokenizer.json").write_bytes((base / "tokenizer.json").read_text().encode(mark))
    assert read_tokenizer(base).encode(text).ids == expected and len(expected) == 4


def test_random_merges_of_a_tokenizer_are_removed(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "b": 1, "ab": 2}
    Tokenizer(models.BPE(vocabulary, [("a", "b")], dropout=1.0)).save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).encode("ab").ids == [2]
