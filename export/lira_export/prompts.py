"""The prompts that a checkpoint was trained with."""

from __future__ import annotations

from lira_engine.bundle import schema
from lira_engine.bundle.manifest import PromptSpec

from .config import LiraConfig
from .families import family_of


def prompts_of(config: LiraConfig) -> PromptSpec:
    """Return the prompts of the checkpoint's own config.json, or those of its language model's family.

    Raises:
        LiraError: the checkpoint's own prompts have missing, unknown or wrong keys.
    """
    if config.prompts is None:
        return family_of(config.llm.family).prompts
    return schema.read(PromptSpec, dict(config.prompts), "config.json.prompts")
