"""The tokenizer of a bundle: the base model's, with LIRA's tokens appended."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from lira_engine.bundle.manifest import TokenSpec
from lira_engine.bundle.tokenizer_file import NoTokenizer, tokenizer_of
from lira_engine.errors import LiraError

from .bpe_files import has_bpe_files, read_bpe_files
from .config import LIRA_TOKENS, LiraConfig
from .families import family_of
from .json_files import read_json
from .sentencepiece_model import read_sentencepiece


def read_tokenizer(base: Path) -> Tokenizer:
    """Return the base model's tokenizer, without LIRA's tokens.

    It is read from tokenizer.json, or tokenizer.model, or vocab.json and merges.txt.

    Raises:
        LiraError: there is none, or it cannot be read.
    """
    path = base / "tokenizer.json"
    if not path.is_file():
        if (base / "tokenizer.model").is_file():
            return read_sentencepiece(base)
        if has_bpe_files(base):
            return read_bpe_files(base)
        raise LiraError(
            f"{base}: no tokenizer.json, no tokenizer.model, no vocab.json with merges.txt; put the base "
            "model's there"
        )
    content = read_json(path, "a tokenizer")
    # Remove what only training uses: truncation, padding, random merges.
    content |= {"truncation": None, "padding": None}
    if isinstance(content.get("model"), dict):
        content["model"].pop("dropout", None)
    try:
        return tokenizer_of(lambda: Tokenizer.from_str(json.dumps(content)))
    except NoTokenizer as error:
        raise LiraError(f"{path}: not a tokenizer ({error}); download the base model's again") from None


def add_lira_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Append LIRA's tokens to ``tokenizer``, in place, and return their ids.

    Each is special and strips no spaces, as with upstream's ``add_tokens(..., special_tokens=True)``. Tokens
    that are there already keep their ids.
    """
    tokenizer.add_special_tokens(
        [
            AddedToken(token, lstrip=False, rstrip=False, normalized=False, special=True)
            for token in LIRA_TOKENS
        ]
    )
    ids = {token: tokenizer.token_to_id(token) for token in LIRA_TOKENS}
    return {token: id_ for token, id_ in ids.items() if id_ is not None}


def special_tokens(tokenizer: Tokenizer, config: LiraConfig) -> TokenSpec:
    """Append LIRA's tokens to ``tokenizer``, in place, and return the ids that the loop needs.

    Raises:
        LiraError: an id is not the one that the checkpoint was trained with, or a token is missing.
    """
    family = family_of(config.llm.family)
    ids: dict[str, int | None] = dict(add_lira_tokens(tokenizer))
    # The embeddings have one row per token; LIRA's are the last.
    first = config.llm.vocab_size - len(LIRA_TOKENS)
    expected = {token: first + i for i, token in enumerate(LIRA_TOKENS)}
    end, *more = family.eos
    ids |= {end: tokenizer.token_to_id(end)}
    ids |= {token: id_ for token in more if (id_ := tokenizer.token_to_id(token)) is not None}
    expected |= {token: id_ for token, id_ in config.special_token_ids.items() if token in ids}
    for token, found in ids.items():
        if found is None or found != expected.get(token, found):
            raise LiraError(
                f"the tokenizer gives {token} the id {found}, the checkpoint was trained with "
                f"{expected.get(token, 'one')}; use the tokenizer.json of its base model"
            )
    suffix = config.space_p_token_ids
    if suffix is None:  # upstream encodes " <p>" after a BOS and drops the BOS
        suffix = tuple(tokenizer.encode(" <p>", add_special_tokens=False).ids)
    if not suffix or suffix[-1] != ids["<p>"]:
        raise LiraError(
            f"the tokenizer makes {list(suffix)} of ' <p>', expected ids that end with {ids['<p>']}"
        )
    known = {token: id_ for token, id_ in ids.items() if id_ is not None}
    return TokenSpec(
        bos=family.bos_token_id if config.bos_token_id is None else config.bos_token_id,
        eos=tuple(known[token] for token in family.eos if token in known),
        seg=known["[SEG]"],
        image_id=known["<image_id>"],
        p=known["<p>"],
        p_end=known["</p>"],
        region_suffix=suffix,
    )
