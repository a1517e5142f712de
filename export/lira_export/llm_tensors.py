"""The language model's tensors as its graph takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .graphs.stored import ONNX_DTYPES
from .storage import Storage

_EMBEDDINGS = "llm.tok_embeddings.weight"


class LlmTensors(Mapping[str, np.ndarray]):
    """The language model's tensors under the names of :func:`~lira_export.graphs.llm.build_llm`.

    A tensor is read when it is asked for, in fp32, with the values that ``storage`` keeps.
    """

    def __init__(self, checkpoint: Checkpoint, storage: Storage = Storage.EXACT) -> None:
        self._checkpoint = checkpoint
        self._storage = storage
        names = [name for name in checkpoint if name.startswith("llm.") and name != _EMBEDDINGS]
        self._names = {_graph_name(name): name for name in names}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._fit(self._names[name]).numpy()

    def __contains__(self, name: object) -> bool:  # a Mapping's own would read the tensor
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def dtype_of(self, name: str) -> ir.DataType:
        """Return in which dtype a matrix is kept. Known only after the matrix was read."""
        exact = self._names[name] in self._storage.kept
        return ONNX_DTYPES[torch.float32 if exact else self._storage.dtype]

    def embeddings(self) -> Tensor:
        """Return the table of token embeddings [V,C]: fp16 if kept so, else fp32, for NumPy has no bf16."""
        table = self._fit(_EMBEDDINGS)
        half = self._storage.dtype == torch.float16 and _EMBEDDINGS not in self._storage.kept
        return table.half() if half else table

    def _fit(self, name: str) -> Tensor:
        return self._storage.fit(name, self._checkpoint.tensor(name))


def _graph_name(parameter: str) -> str:
    """llm.layers.0.q.weight -> layers.0.q, llm.layers.0.q.bias -> layers.0.q_bias"""
    name = parameter.removeprefix("llm.")
    return name.removesuffix(".weight") if name.endswith(".weight") else name.removesuffix(".bias") + "_bias"
