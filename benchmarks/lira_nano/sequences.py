"""Pack all questions about an image, with their answers, into one training sequence.

Each question attends to the system text, the visual prefix and itself; its positions start at the end of the
prefix. So a packed question equals the single-turn prompt of the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from .architecture import PROMPTS
from .scenes import COLORS, SHAPES, Scene, choose
from .sprites import sprite_names
from .texts import (
    Region,
    Sample,
    Seg,
    caption_sample,
    gcg_sample,
    referring,
    referring_sample,
    vqa_pairs,
    vqa_samples,
)

IGNORE = -100


@dataclass
class PackedSequence:
    """One image's sequence after the visual prefix; all lists but `segs` have an entry per row."""

    ids: list[int] = field(default_factory=list)  # 0 where a region feature goes
    region: list[int] = field(default_factory=list)  # row among the image's region features, or -1
    labels: list[int] = field(default_factory=list)  # id of the next token, or IGNORE
    weights: list[float] = field(default_factory=list)
    question: list[int] = field(default_factory=list)  # number of the question
    offset: list[int] = field(default_factory=list)  # position after the prefix
    segs: list[tuple[int, int]] = field(default_factory=list)  # (position of a [SEG] input, object)


class Packer:
    """Turns samples into token sequences with loss weights."""

    def __init__(self, tokenizer: Tokenizer, tokens_per_tile: int) -> None:
        self.tokenizer = tokenizer
        self.tokens_per_tile = tokens_per_tile
        before, after = (PROMPTS["system"] + PROMPTS["user"]).split("<image>")
        self.before = self.encode(before)
        self.after = after
        self.seg, self.image_id, self.end = map(self.special, ("[SEG]", "<image_id>", "<|im_end|>"))
        self.suffix = self.encode(" <p>")
        self.yes_no = {self.encode(word)[0] for word in ("Yes", "No")}
        self.colors = [self.encode(" " + word)[0] for word in COLORS]
        self.categories = [self.encode(" " + word)[0] for word in (*SHAPES, *sprite_names())]

    def special(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no {token}")
        return found

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def pack(self, samples: Sequence[Sample]) -> PackedSequence:
        packed = PackedSequence()
        for number, sample in enumerate(samples):
            self._append(packed, sample, number)
        return packed

    def _append(self, packed: PackedSequence, sample: Sample, number: int) -> None:
        prompt = self.encode(self.after.format(question=sample.question))
        ids, region, learned = list(prompt), [-1] * len(prompt), [False] * len(prompt)
        segs = []
        after_region = False
        for part in (*sample.answer_parts, None):
            if isinstance(part, Seg):
                segs.append((len(packed.ids) + len(ids), part.object_index))
                new, rows, learn = [self.seg], [-1], [True]
            elif isinstance(part, Region):
                # The runtime appends the features and " <p>": the model does not predict them.
                first = part.object_index * self.tokens_per_tile
                new = [self.image_id] + [0] * self.tokens_per_tile
                rows = [-1, *range(first, first + self.tokens_per_tile)]
                learn = [True] + [False] * self.tokens_per_tile
            else:
                new = [self.end] if part is None else self.encode(part)
                rows, learn = [-1] * len(new), [True] * len(new)
                if after_region:
                    assert new[: len(self.suffix)] == self.suffix, part
                    learn[: len(self.suffix)] = [False] * len(self.suffix)
            after_region = isinstance(part, Region)
            ids += new
            region += rows
            learned += learn
        weights = [self._weight(sample, token) for token in ids]
        packed.segs += segs
        packed.ids += ids
        packed.region += region
        packed.labels += [t if ok else IGNORE for t, ok in zip(ids[1:], learned[1:], strict=True)] + [IGNORE]
        packed.weights += [*weights[1:], 0.0]
        packed.question += [number] * len(ids)
        packed.offset += range(len(ids))

    def _weight(self, sample: Sample, token: int) -> float:
        if sample.task == "vqa":
            return 5.0 if token in self.yes_no else 0.2  # else the end token halves the loss of the answer
        return 1.0


def draw_samples(scene: Scene, rng: np.random.Generator, order: Sequence[int] | None = None) -> list[Sample]:
    """Draw two referring expressions, three yes/no pairs, and sometimes a grounded or plain caption.

    `order`: of the objects in captions.
    """
    samples = []
    expressions = referring(scene)
    kinds = sorted({item.kind for item in expressions})
    for _ in range(2):
        # Locations are the hardest to learn.
        kind = "location" if "location" in kinds and rng.random() < 0.25 else choose(rng, kinds)
        item = choose(rng, [e for e in expressions if e.kind == kind])
        samples.append(referring_sample(item, ilvc=rng.random() < 0.5))
    if rng.random() < 0.5:
        samples.append(gcg_sample(scene, rng.random() < 0.5, order))
    if rng.random() < 0.25:
        samples.append(caption_sample(scene, order))
    pairs = vqa_pairs(scene, rng)
    kinds = sorted({pair.kind for pair in pairs})
    for _ in range(3):
        kind = "existence" if rng.random() < 0.2 else choose(rng, kinds)
        samples += vqa_samples(choose(rng, [pair for pair in pairs if pair.kind == kind]))
    return samples
