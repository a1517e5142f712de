"""Linear layers of the torch reference by MKL or by oneDNN, whichever is faster on this CPU.

torch multiplies fp32 matrices with MKL, which leaves the widest instructions of AMD's CPUs unused.
`torch.utils.mkldnn` has the same layer by oneDNN, with weights in its own layout.
"""

from __future__ import annotations

import time
import warnings

import torch
from torch import nn

ROUNDS = 5


def onednn_gain(inputs: int, outputs: int, rows: int) -> float:
    """Return MKL's time over oneDNN's for a linear layer on [rows, inputs], in turns, the best of each."""
    x = torch.randn(1, rows, inputs)
    plain = nn.Linear(inputs, outputs, bias=False).eval()
    layers = (plain, _onednn(plain))
    best = [float("inf")] * len(layers)
    with torch.no_grad():
        for _ in range(ROUNDS):
            for i, layer in enumerate(layers):
                started = time.perf_counter()
                layer(x)
                best[i] = min(best[i], time.perf_counter() - started)
    return best[0] / best[1]


def use_onednn(model: nn.Module) -> None:
    """Replace the model's fp32 linear layers. Their plain weights are freed one by one."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.dtype == torch.float32:
                setattr(module, name, _onednn(child))


def _onednn(layer: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its class is a TorchScript module, which torch wants to drop
        from torch.utils.mkldnn import MkldnnLinear

        return MkldnnLinear(layer, torch.float32)
