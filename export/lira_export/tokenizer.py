"""LIRA's additions to the tokenizer of its language model."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer

# In the order in which upstream appends them: with InternVL2's tokenizer they are ids 92553 to 92558.
LIRA_TOKENS = ("[SEG]", "<p>", "</p>", "<region>", "<mark>", "<image_id>")


def add_lira_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Appends LIRA's tokens to `tokenizer`, in place, and returns their ids.

    Each is special and swallows no space on either side, as upstream's `add_tokens(..., special_tokens=True)`
    makes them. Tokens that are already there keep their ids.
    """
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in LIRA_TOKENS])
    return {token: tokenizer.token_to_id(token) for token in LIRA_TOKENS}
