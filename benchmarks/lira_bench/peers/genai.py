"""Peer: onnxruntime-genai, int4."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lira_bench.peers.model import Stepwise
from lira_bench.peers.python_run import run_module

QUANTIZATION = (
    "int4, symmetric, blocks of 32, LM head too, arithmetic in int8 (accuracy level 4); KV cache fp32, "
    "one buffer for past and present"
)
OPTIONS = ("block_size=32", "accuracy_level=4", "prune_lm_head=true")


def convert(source: Path, out: Path, threads: int) -> None:
    """Convert as its documentation says: model builder, int4 for the CPU, logits of the last row only."""
    run_module(
        "onnxruntime_genai.models.builder",
        *("-i", source, "-o", out, "-p", "int4", "-e", "cpu", "-c", out / "cache"),
        *("--extra_options", *OPTIONS),
    )


class Model(Stepwise):
    """A generator per sequence. Its end tokens are banned, so that it goes on."""

    quantization = QUANTIZATION

    def __init__(self, folder: Path, threads: int, capacity: int) -> None:
        import onnxruntime_genai

        self._library = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        self._parameters = onnxruntime_genai.GeneratorParams(self._model)
        self._parameters.set_search_options(do_sample=False, max_length=capacity, min_length=capacity)
        self._generator: Any = None

    def begin(self) -> None:
        self._generator = None  # frees its cache before the next one is made
        self._generator = self._library.Generator(self._model, self._parameters)

    def prefill(self, ids: Sequence[int]) -> int:
        self._generator.append_tokens(np.asarray(ids, np.int32)[None])
        return self.step(-1)

    def step(self, token: int) -> int:
        """Return the next token; the generator keeps the last one itself."""
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])

    def close(self) -> None:
        self._generator = self._parameters = self._model = None
