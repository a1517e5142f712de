"""The language model families that can be exported: one file and one line of this table for each."""

from __future__ import annotations

from lira_engine.errors import LiraError

from .family import LLM_PREFIX, Family
from .internlm2 import INTERNLM2
from .qwen2 import QWEN2

__all__ = ["DEFAULT", "FAMILIES", "LLM_PREFIX", "Family", "family_of"]

FAMILIES = {family.name: family for family in (INTERNLM2, QWEN2)}
DEFAULT = INTERNLM2
"""Of a configuration that names none."""


def family_of(name: str) -> Family:
    """Return the family of a ``model_type``. Raises LiraError if it cannot be exported."""
    if name not in FAMILIES:
        raise LiraError(
            f"language model {name!r}: expected one of {', '.join(FAMILIES)} as model_type of llm_config; "
            "is this the base model that LIRA was trained on?"
        )
    return FAMILIES[name]
