"""Stand-ins for published tokenizers, which this package may not ship.

Words of LIRA's prompts and answers are tokens, so that prompts are about as long as with the published ones.
Other text is spelled in bytes. Tokens that no text contains fill the rest of the vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..families import FAMILIES, Family
from ..families.family import Vocabulary

_ANSWERS = (
    "The image shows a person in front of a building. Sure, it is on the right side of a table.",
    "A man and a woman are standing next to a dog, a cat, a car, a bus and a tree in the background.",
)
SPACE = "\u2581"
_UNKNOWN = "<unk>"


def stand_in_tokenizer(family: Family) -> Tokenizer:
    """Return a tokenizer with as many tokens, and special tokens with the same ids, as the published one."""
    vocabulary = family.vocabulary
    if vocabulary.byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return _filled(tokenizer, sorted(pre_tokenizers.ByteLevel.alphabet()), vocabulary)
    tokenizer = Tokenizer(models.BPE(unk_token=_UNKNOWN, byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = [_UNKNOWN, "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return _filled(tokenizer, first, vocabulary)


def _filled(tokenizer: Tokenizer, first: Sequence[str], vocabulary: Vocabulary) -> Tokenizer:
    """Learn merges from LIRA's own texts, fill up to the number of pieces, append the special tokens."""
    prompts = [family.prompts for family in FAMILIES.values()]
    texts = [text for prompt in prompts for text in (prompt.system, prompt.user)]
    texts += [task.question for prompt in prompts for task in prompt.tasks.values()]
    texts = [re.sub(r"<\|.*?\|>", " ", text) for text in texts]  # special tokens are no pieces
    trainer = trainers.BpeTrainer(vocab_size=len(first) + 1500, max_token_length=6, show_progress=False)
    split = tokenizer.pre_tokenizer
    if split is None:  # learn words, not sentences
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    tokenizer.train_from_iterator([*texts, *_ANSWERS], trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    names = list(dict.fromkeys([*first, *learnt["vocab"]]))
    names += [f"<unused {i}>" for i in range(vocabulary.pieces - len(names))]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    ids = {name: i for i, name in enumerate(names)}
    if vocabulary.byte_level:
        tokenizer.model = models.BPE(ids, merges)
    else:
        tokenizer.model = models.BPE(ids, merges, unk_token=_UNKNOWN, byte_fallback=True, fuse_unk=True)
    added = [AddedToken(token, special=True, normalized=False) for token in vocabulary.special]
    tokenizer.add_special_tokens(added)
    return tokenizer
