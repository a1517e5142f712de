"""What all scenes of an opened bundle share: engines, tokenizer, embedding table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from lira_engine.bundle.manifest import Manifest
from lira_engine.engines.runner import Engines
from lira_runtime import preprocess
from lira_runtime.callbacks import EncodedRegion
from lira_runtime.prompts import Prompt, Question, QuestionOptions, build_prompt
from lira_runtime.tokenizer import TextCoder

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Model:
    """A bundle's engines, tokenizer and embedding table."""

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        tokenizer: TextCoder,
        embeddings: np.ndarray,  # [V, C] float32, memory-mapped where it is a bundle's
        separators: np.ndarray,  # [2, C] float32
    ) -> None:
        self.manifest = manifest
        self.engines = engines
        self.tokenizer = tokenizer
        self._embeddings = embeddings
        self._separators = separators

    def encode_tiles(self, tiles: np.ndarray) -> np.ndarray:
        """tiles [T, 3, S, S] float32 -> features [T, N, C] float32.

        `Engines.tiles_at_once` in a pass. On a CPU that is one: it keeps all cores busy, and seven at once
        need seven times the memory.
        """
        start, most = self.engines.semantic_encoder.start, self.engines.tiles_at_once
        passes = [start({"pixel_values": tiles[i : i + most]}) for i in range(0, len(tiles), most)]
        return np.concatenate([one.numpy("features") for one in passes])

    def encode_region(self, image: Image, mask: np.ndarray) -> EncodedRegion:
        """Encode what a mask [H, W] bool shows of the image, with what is around it darkened."""
        spec = self.manifest.preprocessing
        tile, box = preprocess.highlighted_tile(image, mask, spec.region, spec.tile)
        return EncodedRegion(box, tile, self.encode_tiles(tile)[0])

    def embed(self, token_ids: Sequence[int]) -> np.ndarray:
        """token ids [n] -> embeddings [n, C] float32. Reads only these rows of the table."""
        return np.asarray(self._embeddings[np.asarray(token_ids, dtype=np.int64)], dtype=np.float32)

    def prompt(self, question: Question | str | None = None, **options: Unpack[QuestionOptions]) -> Prompt:
        """Return the token ids of a question. Arguments and errors are those of `Scene.stream`."""
        manifest = self.manifest
        asked = Question.of(question, **options)
        return build_prompt(manifest.prompts, manifest.tokens, self.tokenizer, asked)
