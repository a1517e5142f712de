"""The tokens that LIRA appends to its base model's vocabulary."""

from __future__ import annotations

LIRA_TOKENS = ("[SEG]", "<p>", "</p>", "<region>", "<mark>", "<image_id>")
"""In upstream's order. With InternVL2's tokenizer they get the ids 92553 to 92558."""
