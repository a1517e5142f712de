"""The torch reference's linear layers by oneDNN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lira_bench.peers import torch_linear
from lira_bench.peers.torch_linear import onednn_gain, use_onednn


def test_the_replaced_layers_give_the_same() -> None:
    """Sums in another order: 1e-5 of values near 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Sequential(nn.Linear(128, 32, bias=False))).eval()
    x = torch.randn(2, 7, 64)
    with torch.no_grad():
        expected = model(x)
        use_onednn(model)
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert not any(type(module) is nn.Linear for module in model.modules())


def test_layers_whose_weights_are_read_by_others_stay() -> None:
    """`nn.MultiheadAttention` reads the weights of its output layer, which is a class of its own."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4), "fp16": nn.Linear(8, 8).half()})
    before = list(model.modules())
    use_onednn(model)
    assert list(model.modules()) == before


def test_the_gain_is_mkls_time_over_onednns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which the layers take 6 s and 2 s in turn, and the first turn longer."""
    times = iter([t for n in range(torch_linear.ROUNDS) for t in (0.0, 9.0 if n == 0 else 6.0, 0.0, 2.0)])
    monkeypatch.setattr("lira_bench.peers.torch_linear.time.perf_counter", lambda: next(times))
    assert onednn_gain(32, 64, 4) == 3.0
