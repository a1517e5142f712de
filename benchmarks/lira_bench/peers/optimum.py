"""Peer: optimum-onnx, ORTModelForCausalLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lira_bench.peers.model import Stepwise

QUANTIZATION = "fp32, its plain export; KV cache fp32, copied at each step"


def convert(source: Path, out: Path, threads: int) -> None:
    """Convert by ``from_pretrained(export=True)``, the first example of its documentation."""
    from optimum.onnxruntime import ORTModelForCausalLM

    ORTModelForCausalLM.from_pretrained(source, export=True).save_pretrained(out)


class Model(Stepwise):
    """Forward passes of the model, without ``generate``."""

    quantization = QUANTIZATION

    def __init__(self, folder: Path, threads: int, capacity: int) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
        self._torch = torch
        self._past: Any = None
        self._rows = 0

    def begin(self) -> None:
        self._past, self._rows = None, 0

    def prefill(self, ids: Sequence[int]) -> int:
        return self._read(ids)

    def step(self, token: int) -> int:
        return self._read([token])

    def _read(self, ids: Sequence[int]) -> int:
        self._rows += len(ids)
        found = self._model(
            input_ids=self._torch.tensor([ids]),
            attention_mask=self._torch.ones(1, self._rows, dtype=self._torch.int64),
            past_key_values=self._past,
            use_cache=True,
        )
        self._past = found.past_key_values
        return int(found.logits[0, -1].argmax())

    def close(self) -> None:
        self._model = self._past = None
