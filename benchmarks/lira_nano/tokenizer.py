"""The tokenizer of lira-nano: a fixed list of words, with single characters and bytes for everything else.

As InternLM2's tokenizer it writes a space as `▁` in front of the next word. Unlike it, it adds no space at
the start of a text, so decoding returns every text exactly (but a literal `▁` becomes a space).
"""

from __future__ import annotations

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from lira_nano.scenes import BACKGROUNDS, COLORS, SHAPES
from lira_nano.sprites import sprite_names

SPACE = "\u2581"
UNKNOWN = "<unk>"
# Ids as in InternLM2 for the first three.
SPECIAL_TOKENS = (UNKNOWN, "<s>", "</s>", "<|im_start|>", "<|im_end|>")

# Words of the prompts and answers, after a space.
_TASK_WORDS = """
    You are LIRA Please segment at a glance Can you provide thorough description of the this image with output
    interleaved segmentation masks for corresponding phrases Do it Provide short Is there in answer yes or no
    Yes No an and shape object on left right side top bottom
"""
# Words for questions that people may ask, whether or not the model understands them.
_FREE_WORDS = """
    what where which who how many much does do has have not can could show find mark point tell me see look
    describe name list count color colour kind type size big small large little biggest smallest larger
    smaller next to near between above below under over behind front middle center corner background picture
    scene photo thing things objects shapes animals animal one two three four first second other another all
    every any some that these those its from by as be was will would should only also more than most same
    different here your my i we they he she long mask
"""
# Without a space in front: at the start of a text, an answer or a line.
_BARE_WORDS = """
    system user assistant You Please Can Provide Is Yes No Do What Where Which Who How Are Does Describe Show
    Find Segment Mark Count List Tell The A There yes no a an the
"""


def vocabulary() -> list[str]:
    """Return all pieces in id order: special tokens, bytes, ASCII characters, spaced words, bare words."""
    things = [*sprite_names(), *SHAPES]
    nouns = [*things, *COLORS]
    plurals = [thing + "s" for thing in things]
    spaced = [*_TASK_WORDS.split(), *nouns, *BACKGROUNDS, *plurals, *_FREE_WORDS.split()]
    pieces = [
        *SPECIAL_TOKENS,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        SPACE,
        "\n",
        *string.digits,
        *string.ascii_letters,
        *string.punctuation,
        *(SPACE + word for word in spaced),
        *_BARE_WORDS.split(),
        *nouns,
    ]
    return list(dict.fromkeys(pieces))


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer without LIRA's six tokens, which the exporter appends as to any checkpoint's."""
    pieces = vocabulary()
    # Unigram maximises the sum of scores: a word beats its letters, a longer word two shorter ones.
    scored = [(piece, -1.0 if len(piece) > 1 else -10.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=pieces.index(UNKNOWN), byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(special)
    return tokenizer
