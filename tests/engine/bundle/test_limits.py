"""Sizes in lira.json fit each other, and ask for no more than a real model does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from lira_engine import Bundle, LiraError
from lira_engine.bundle.manifest import Manifest

BILLION = 1_000_000_000


def set_value(data: Any, where: str, value: Any) -> None:
    *way, last = where.split("/")
    for key in way:
        data = data[int(key) if isinstance(data, list) else key]
    data[int(last) if isinstance(data, list) else last] = value


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("preprocessing/tile/mean", [0.5, 0.5], "tile.mean: found .*, expected 3 numbers"),
        ("preprocessing/tile/std", [0.2, 0.0, 0.2], "tile.std: found .*, expected 3 numbers from 0.001"),
        ("preprocessing/tile/std", [0.2, -0.2, 0.2], "tile.std"),
        ("preprocessing/pixel/std", [0.2, 1e-300, 0.2], "pixel.std"),
        ("preprocessing/pixel/std", [0.2] * 4, "pixel.std"),
        ("preprocessing/pixel/mean", [1e30, 0, 0], "pixel.mean"),
        ("preprocessing/pixel/pad_color", [1, 2], "pad_color: found .*, expected 3 integers"),
        ("preprocessing/pixel/pad_color", [1, 2, 256], "pad_color"),
        ("preprocessing/region/brightness", -0.1, "brightness"),
        ("preprocessing/tile/size", 60_000, "tile.size: found 60000, expected the model's 4"),
        ("preprocessing/pixel/size", 60_000, "pixel.size: found 60000, expected the model's 32"),
        ("preprocessing/tile/max_num", BILLION, f"max_num {BILLION}, expected 1 to 64"),
        ("preprocessing/tile/max_num", 0, "found min_num 1 and max_num 0"),
        ("preprocessing/tile/min_num", 0, "found min_num 0"),
        ("prompts/system", "x" * 100_000, "prompts.system: found 100000 characters, expected at most 65536"),
        ("prompts/tasks/vqa/question", "x" * 100_000, "prompts.tasks.vqa.question: found 100000"),
        ("prompts/tasks/vqa/max_new_tokens", 0, "max_new_tokens: found 0, expected 1 to"),
        ("prompts/tasks/vqa/stop", ["x"] * 2000, "stop: found 2000"),
        ("tokens/region_suffix", [5] * 2000, "region_suffix: found 2000"),
        ("model/num_layers", BILLION, f"model.num_layers: found {BILLION}, expected at most"),
        ("model/num_layers", 1 << 20, "model.num_layers: found 1048576, expected a KV cache of each"),
        ("model/num_layers", 3, "stages.llm: key_cache.2 is missing"),
        ("model/context_length", 17, "stages.llm.key_cache.0: found .*, expected"),
        ("model/hidden_size", 9, "semantic_encoder.features: found .*, expected"),
        ("model/mask_size", 9, "pixel_decoder.mask_logits: found .*, expected"),
        ("model/num_queries", 4, "found .*, expected"),
        ("stages/llm/outputs/logits/shape", [1, "K"], r"llm.logits: found \[1, 'K'\], expected"),
        ("stages/llm/inputs/key_cache.0/shape/2", 1 << 24, "llm.key_cache.0: found .*, expected"),
        ("stages/pixel_encoder/outputs/mask_features/shape", [1, 1 << 20, 1 << 20], "1 GiB in all"),
        ("stages/pixel_encoder/outputs/mask_features/shape", [1, -4], "expected 1 or more each"),
        ("stages/pixel_encoder/outputs/mask_features/shape", [1] * 99, "mask_features"),
        ("stages/pixel_encoder/outputs/mask_features/dtype", "FLOAT32", "found dtype 'FLOAT32'"),
        (
            "stages/pixel_encoder/outputs/mask_features/shape/3",
            "a" * 5000,
            "the size 'aaaaaaaaaaaaaaaaaaaa', which",
        ),
        ("stages/sefe/inputs/other", {"dtype": "float32", "shape": [1]}, "what the pixel encoder makes"),
    ],
)
def test_odd_sizes_are_refused(bundle_path: Path, where: str, value: Any, says: str) -> None:
    file = bundle_path / "lira.json"
    data = json.loads(file.read_text())
    set_value(data, where, value)
    file.write_text(json.dumps(data))
    started = time.process_time()
    with pytest.raises(LiraError, match=f"{says}.*; copy the bundle again") as error:
        Bundle.open(bundle_path)
    assert len(str(error.value)) < 700 and "\n" not in str(error.value)
    assert time.process_time() - started < 5


def test_large_pictures_are_refused_although_they_fit_each_other(bundle_path: Path) -> None:
    file = bundle_path / "lira.json"
    for kind in ("tile", "pixel"):
        data = json.loads(file.read_text())
        data["preprocessing"][kind]["size"] = data["model"][f"{kind}_size"] = 5000
        changed = bundle_path / "changed.json"
        changed.write_text(json.dumps(data))
        with pytest.raises(LiraError, match=rf"preprocessing\.{kind}: asks for \d+ pixels, expected at most"):
            Manifest.load(changed)


def test_a_manifest_of_many_bytes_is_not_read(bundle_path: Path) -> None:
    most = 8 << 20
    with open(bundle_path / "lira.json", "ab") as file:
        file.write(b" " * (most - file.tell()))
    Bundle.open(bundle_path)
    with open(bundle_path / "lira.json", "ab") as file:
        file.write(b" " * (60 << 20))
    with pytest.raises(LiraError, match=r"lira\.json cannot be read \(it has more than 8,388,608 bytes\)"):
        Bundle.open(bundle_path)
