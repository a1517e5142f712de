"""Read a byte-level BPE tokenizer from vocab.json and merges.txt, as Qwen2's repositories have them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lira_engine.bundle.tokenizer_file import NoTokenizer, tokenizer_of
from lira_engine.errors import LiraError

from .json_files import read_json

# Where Qwen2 splits text before merging: contractions, words with a sign in front, digits, signs, lines.
_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def has_bpe_files(base: Path) -> bool:
    """Return whether the folder has both files."""
    return (base / "vocab.json").is_file() and (base / "merges.txt").is_file()


def read_bpe_files(base: Path) -> Tokenizer:
    """Return the tokenizer, with the tokens that tokenizer_config.json or added_tokens.json adds.

    Raises:
        LiraError: a file is damaged, or the id of an added token is not the next one.
    """
    vocabulary = read_json(base / "vocab.json", "a vocabulary")
    merges = _merges(base / "merges.txt")
    lost = next((part for pair in merges for part in (*pair, "".join(pair)) if part not in vocabulary), None)
    if lost is not None:  # the library may panic, and print where
        raise LiraError(
            f"{base}: vocab.json and merges.txt do not fit (no {lost[:40]!r} in the vocabulary); download "
            "both again"
        )
    try:
        tokenizer = tokenizer_of(lambda: Tokenizer(models.BPE(vocabulary, merges)))
    except NoTokenizer as error:
        raise LiraError(
            f"{base}: vocab.json and merges.txt do not fit ({error}); download both again"
        ) from None
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUTS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for id_, token in sorted(_added(base).items()):
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != id_:
            raise LiraError(
                f"{base}: added token {token.content!r} has the id {id_}, expected "
                f"{tokenizer.token_to_id(token.content)}, the next one; download the tokenizer's files again"
            )
    return tokenizer


def _merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise LiraError(f"{path}: not text ({error}); download it again") from None
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise LiraError(
            f"{path}: found the line {' '.join(wrong)[:40]!r}, expected two tokens; download it again"
        )
    return [(first, second) for first, second in pairs]


def _added(base: Path) -> dict[int, AddedToken]:
    config = base / "tokenizer_config.json"
    entries = (
        read_json(config, "a tokenizer's configuration").get("added_tokens_decoder", {})
        if config.is_file()
        else {}
    )
    if not entries and (base / "added_tokens.json").is_file():
        named = read_json(base / "added_tokens.json", "added tokens")
        entries = {str(id_): {"content": token, "special": True} for token, id_ in named.items()}
    try:
        return {
            int(id_): AddedToken(
                entry["content"],
                special=entry.get("special", False),
                normalized=entry.get("normalized", False),
                lstrip=entry.get("lstrip", False),
                rstrip=entry.get("rstrip", False),
            )
            for id_, entry in entries.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LiraError(f"{base}: cannot read the added tokens ({error!r}); download them again") from None
