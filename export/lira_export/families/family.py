"""What tells one language model family from another: names of its tensors, tokens, prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lira_engine.bundle.manifest import PromptSpec, TaskSpec

if TYPE_CHECKING:
    from torch import Tensor

LLM_PREFIX = "llm.base_model.model."
"""Of a language model's tensor in LIRA's file; in the base model's file it is ``language_model.``."""


@dataclass(frozen=True)
class Packing:
    """How one matrix holds the rows of q, k and v.

    Attributes:
        unpack: matrix, KV heads, head dimension -> part -> its rows, a view.
        pack: q, k, v, KV heads, head dimension -> matrix.
    """

    unpack: Callable[[Tensor, int, int], Mapping[str, Tensor]]
    pack: Callable[[Tensor, Tensor, Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Linear:
    """A linear layer: the checkpoint's name, and the reference model's names of the parts that it holds."""

    name: str
    parts: tuple[str, ...]
    bias: bool = False
    packing: Packing | None = None  # where it holds several parts


@dataclass(frozen=True)
class Vocabulary:
    """Size and special tokens of the published tokenizer, for its stand-in in synthetic checkpoints.

    Attributes:
        pieces: tokens before the special ones.
        special: tokens after the pieces, in order of their ids.
        byte_level: pieces are spelled in byte-level BPE's alphabet (GPT-2); else as SentencePiece does it.
    """

    pieces: int
    special: tuple[str, ...]
    byte_level: bool


@dataclass(frozen=True)
class Family:
    """A language model family. Names are upstream's, without prefixes and ``.weight``.

    Attributes:
        head: LM head, where the embeddings do not serve as one.
        head_is_adapted: the head is a LoRA layer and lies in LIRA's file, with its adapter.
        norms: the reference model's name of a layer's norm -> upstream's.
        padded_vocabulary: the base model has more rows than tokens; LIRA's file has one row per token.
        eos: tokens that end an answer, the end of a turn first.
        prompts: of upstream's chat template, for checkpoints that bring none of their own.
    """

    name: str
    embeddings: str
    head: str
    head_is_adapted: bool
    linears: tuple[Linear, ...]
    norms: Mapping[str, str]
    padded_vocabulary: bool
    eos: tuple[str, ...]
    bos_token_id: int
    prompts: PromptSpec
    vocabulary: Vocabulary

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections to q, k and v have biases."""
        return self.linears[0].bias


def chat(system: str, user: str, end: str) -> PromptSpec:
    """Return upstream's tasks in a family's chat template.

    ``system``: the whole system block. ``user``: the turn with ``<image>`` and ``{question}``. ``end``: token
    at the end of a turn.
    """
    return PromptSpec(
        system=system,
        user=user,
        # Upstream's referring script puts BOS in front of the system block, its other scripts do not. The KV
        # cache of system block and image serves all tasks, so all have to agree.
        add_bos=False,
        tasks={
            "refseg": TaskSpec(
                "Please segment {expression}.", max_new_tokens=100, stop=(end, "<image_id>"), lowercase=True
            ),
            "gcg": TaskSpec(
                "Can you provide a thorough description of the this image? Please output with interleaved "
                "segmentation masks for the corresponding phrases.",
                max_new_tokens=512,
                stop=(end,),
            ),
            "vqa": TaskSpec("{expression}", max_new_tokens=100, stop=(end,)),
            "caption": TaskSpec("Please describe this picture", max_new_tokens=512, stop=(end,)),
        },
    )
