"""Stand-ins for tokenizers that cannot be shipped, with the same special ids and number of tokens.

Words of LIRA's prompts and answers are tokens, so that prompts are about as long as with the real ones; the
rest is spelled in bytes; what is left of the vocabulary is filled with tokens that no text contains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..prompts import CHAT

_INTERNLM2_PIECES = 92538
_INTERNLM2_SPECIAL = (
    *("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"),
    *("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)
_QWEN2_PIECES = 151643
_QWEN2_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_ANSWERS = (
    "The image shows a person in front of a building. Sure, it is on the right side of a table.",
    "A man and a woman are standing next to a dog, a cat, a car, a bus and a tree in the background.",
)
SPACE = "\u2581"


def internlm2_tokenizer() -> Tokenizer:
    """BPE with byte fallback; ids 92538 to 92552 are InternLM2's and InternVL's special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return _filled(tokenizer, first, _INTERNLM2_PIECES, _INTERNLM2_SPECIAL, "<unk>", byte_fallback=True)


def qwen2_tokenizer() -> Tokenizer:
    """Byte-level BPE; ids 151643 to 151656 are Qwen2-VL's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _filled(tokenizer, sorted(pre_tokenizers.ByteLevel.alphabet()), _QWEN2_PIECES, _QWEN2_SPECIAL)


def _filled(
    tokenizer: Tokenizer,
    first: Sequence[str],
    pieces: int,
    special: Sequence[str],
    unk: str | None = None,
    byte_fallback: bool = False,
) -> Tokenizer:
    """Learn merges from LIRA's own texts, then fill up to ``pieces`` and append ``special``."""
    texts = [text for prompt in CHAT.values() for text in (prompt.system, prompt.user)]
    texts += [task.question for prompt in CHAT.values() for task in prompt.tasks.values()]
    texts = [re.sub(r"<\|.*?\|>", " ", text) for text in texts]  # special tokens are no pieces
    trainer = trainers.BpeTrainer(vocab_size=len(first) + 1500, max_token_length=6, show_progress=False)
    split = tokenizer.pre_tokenizer
    if split is None:  # learn words, not sentences
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    tokenizer.train_from_iterator([*texts, *_ANSWERS], trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    names = list(dict.fromkeys([*first, *learnt["vocab"]]))
    names += [f"<unused {i}>" for i in range(pieces - len(names))]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer.model = models.BPE(
        vocabulary, merges, unk_token=unk, byte_fallback=byte_fallback, fuse_unk=unk is not None
    )
    added = [AddedToken(token, special=True, normalized=False) for token in special]
    tokenizer.add_special_tokens(added)
    return tokenizer
