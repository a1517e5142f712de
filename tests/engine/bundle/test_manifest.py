"""lira.json is read as written, and errors name the wrong key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lira_engine import LiraError, Manifest


@pytest.fixture
def data(made_bundle: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((made_bundle / "lira.json").read_text())
    return parsed


def test_reading_returns_what_was_written(data: dict[str, Any]) -> None:
    manifest = Manifest.from_json(data)
    assert manifest.to_json() == data
    assert Manifest.from_json(json.loads(manifest.dumps())) == manifest
    assert manifest.tokens.region_suffix == (5, 6)
    assert manifest.stages["semantic_encoder"].inputs["pixel_values"].shape == ("T", 3, 4, 4)
    assert manifest.prompts.tasks["vqa"].question_without_ilvc is None


CASES: list[tuple[str, Any, str]] = [
    ("model.num_layers", "4", "model.num_layers: found '4', expected an integer"),
    ("model.num_layers", True, "model.num_layers: found True, expected an integer"),
    ("model.num_layers", None, "model: key 'num_layers' is missing"),
    ("model.num_kv_heads", 0, "model.num_kv_heads: found 0, expected more than 0"),
    ("model.rope_theta", float("nan"), "model.rope_theta: found nan, expected a number"),
    ("model.rope_theta", 10**400, "model.rope_theta: found 1000"),
    ("model.rope_theta", float("inf"), "model.rope_theta: found inf"),
    ("model.depth", 1, "model: unknown key 'depth'"),
    ("preprocessing.tile.mean", 0.5, "preprocessing.tile.mean: found 0.5, expected a list"),
    ("tokens.eos", ["a"], "tokens.eos[0]: found 'a', expected an integer"),
    ("tokens.seg", 20, "tokens: id 20 is not in the vocabulary of 20"),
    ("tokens.region_suffix", [-1], "tokens: id -1 is not in the vocabulary of 20"),
    ("prompts.user", "hello", "prompts.user: expected <image> and, behind it, {question}"),
    ("prompts.user", "{question}<image>", "prompts.user: expected <image> and, behind it, {question}"),
    ("prompts.tasks.vqa.question", None, "prompts.tasks.vqa: key 'question' is missing"),
    ("prompts.tasks.vqa.question_without_ilvc", 3, "question_without_ilvc: found 3, expected a string"),
    ("stages.sefe", None, "stages: found "),
    ("stages.sefe.file", "other.onnx", "stages.sefe: 'other.onnx' is not among the listed files"),
    ("stages.sefe.inputs.features.shape", [1.5], "shape[0]: found 1.5, expected an integer or a string"),
    ("files.extra", {"sha256": "xyz", "bytes": 1}, "files.extra.sha256: expected 64 hexadecimal digits"),
    ("files.extra", {"sha256": "0" * 64, "bytes": -1}, "files.extra.bytes: found -1, expected 0 or more"),
    ("name", None, "key 'name' is missing"),
    ("format", "zip", "is not a lira-edge bundle"),
    ("format_version", 2, "format version 2, this lira-edge reads up to 1: update it with `pip install"),
    ("format_version", "1", "format_version is '1', expected an integer"),
    ("format_version", 0, "format_version is 0, expected an integer of 1 or more"),
]


@pytest.mark.parametrize(("key", "value", "message"), CASES)
def test_an_error_names_the_wrong_key(data: dict[str, Any], key: str, value: Any, message: str) -> None:
    *parents, last = key.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(LiraError, match=re.escape(message)) as caught:
        Manifest.from_json(data)
    assert "\n" not in str(caught.value)


def test_num_heads_must_be_a_multiple_of_num_kv_heads(data: dict[str, Any]) -> None:
    data["model"] |= {"num_heads": 3, "num_kv_heads": 2}
    with pytest.raises(LiraError, match="num_heads 3 is no multiple of num_kv_heads 2"):
        Manifest.from_json(data)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1]"])
def test_a_file_that_is_not_a_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lira.json"
    path.write_bytes(content)
    with pytest.raises(LiraError, match=r"lira\.json"):
        Manifest.load(path)
