"""Parameters counted from a configuration against those of the reference model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lira_export.config import LiraConfig
from lira_export.model.lira import Lira
from lira_export.parameters import Count, count_parameters
from lira_export.synthetic.presets import preset

PREFIXES = {
    "semantic_encoder": ("semantic_encoder.",),
    "pixel_encoder": ("pixel_encoder.",),
    "sefe": ("projector.",),
    "llm": ("llm.layers.", "llm.norm.", "llm.lm_head."),
    "pixel_decoder": ("text2vision.", "pixel_encoder.mask_decoder."),
}


def config(name: str, tiny_checkpoint: Path) -> LiraConfig:
    if name == "tiny":
        return LiraConfig.from_files(tiny_checkpoint / "config.json", tiny_checkpoint, name)
    return preset(name).config


@pytest.mark.parametrize("name", ["tiny", "lira-2b", "lira-8b", "lira-qwen2-1.5b"])
def test_counts_are_those_of_the_model(name: str, tiny_checkpoint: Path) -> None:
    made = config(name, tiny_checkpoint)
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Lira(made).named_parameters()}
    found = count_parameters(made)
    assert found.keys() == PREFIXES.keys()
    for stage, prefixes in PREFIXES.items():
        expected = Count()
        for parameter, shape in shapes.items():
            if parameter.startswith(prefixes):
                expected += Count(shape.numel()) if len(shape) > 1 else Count(0, shape.numel())
        assert found[stage] == expected, stage
