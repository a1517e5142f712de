"""Run a small language model as a whole over recorded sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

from lira_calib.data.sequences import Sequence
from lira_calib.runs.stage_runs import lowered, recipe_digest
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.recipe import NO_RECIPE, StageRecipe
from lira_engine.engines.runner import LlmOutput
from lira_engine.ort.llm import OrtLlm, open_llm

LARGEST_WHOLE = 512 << 20
"""Bytes of a portable language model that is opened as a whole; fp32 takes up to four times that."""


class LlmRows(Protocol):
    """A language model over recorded sequences, each from its first row on."""

    def outputs(self, sequences: list[Sequence], recipe: StageRecipe = NO_RECIPE) -> Iterable[LlmOutput]:
        """Give the outputs of each sequence at its token_rows and then its seg_rows: logits [n + m, V] and
        hidden states [n + m, C]."""
        ...


def llm_bytes(bundle: Bundle) -> int:
    """Return the size of the portable language model."""
    return sum(bundle.manifest.files[name].bytes for name in bundle.stage_sources("llm"))


class WholeLlm:
    """The language model of `build --target cpu`, opened as a whole. The fp32 one stays open."""

    def __init__(self, bundle: Bundle, work: Path, threads: int | None = None) -> None:
        """`work`: where lowered graphs are while they are open."""
        self._bundle, self._work, self._threads = bundle, work, threads
        self._plain: OrtLlm | None = None

    def outputs(self, sequences: list[Sequence], recipe: StageRecipe = NO_RECIPE) -> Iterator[LlmOutput]:
        """See LlmRows."""
        if not recipe:
            if self._plain is None:
                with self._opened(recipe) as llm:
                    self._plain = llm
            yield from (_run(self._plain, sequence) for sequence in sequences)
            return
        with self._opened(recipe) as llm, llm:
            yield from (_run(llm, sequence) for sequence in sequences)

    def close(self) -> None:
        if self._plain is not None:
            self._plain.close()
        self._plain = None

    @contextmanager
    def _opened(self, recipe: StageRecipe) -> Iterator[OrtLlm]:
        prefix = f"lowered-llm-{recipe_digest(recipe)}-"
        with TemporaryDirectory(dir=self._work, prefix=prefix) as folder:
            file = lowered(self._bundle, "llm", recipe, Path(folder))
            yield open_llm(file, self._bundle.manifest.model, self._threads)


def _run(llm: OrtLlm, sequence: Sequence) -> LlmOutput:
    asked = np.concatenate([sequence.token_rows, sequence.seg_rows])
    return llm.forward(sequence.embeds, llm.new_cache(), [int(row) for row in asked])
