"""`Lira.open` hands on what it is given, and closes what it opened."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lira_engine.open
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.runner import Engines
from lira_runtime import Lira


@pytest.fixture
def opened(fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What engines were opened with, and "closed" for each stage that was closed."""
    seen: list[Any] = []
    bundle = SimpleNamespace(
        manifest=fakes.fake_manifest(),
        tokenizer_file="none",
        embeddings=np.zeros((9, 8), np.float32),
        separators=np.zeros((2, 8), np.float32),
    )

    def open_engines(given: Any, *options: Any) -> Engines:
        assert given is bundle
        seen.append(options)
        stage: Any = SimpleNamespace(close=lambda: seen.append("closed"))
        return Engines("cpu", "fp32", stage, stage, stage, stage, stage, draft_costs=(0.5,))

    monkeypatch.setattr(Bundle, "open", lambda path: bundle)
    monkeypatch.setattr(lira_engine.open, "open_engines", open_engines)
    return seen


def test_every_option_reaches_the_engines(fakes: SimpleNamespace, opened: list[Any]) -> None:
    coder = fakes.FakeTokenizer()
    plain = Lira.open("bundle", tokenizer=coder)
    other = Lira.open("bundle", "cuda", "int4", 3, coder, unverified=True, draft="off", driver="pycuda")
    assert opened == [("cpu", "fp32", None, False, "auto"), ("cuda", "int4", 3, True, "pycuda")]
    assert (plain.engines.draft_costs, other.engines.draft_costs) == ((0.5,), ())
    assert plain.tokenizer is coder


def test_leaving_it_closes_every_stage(fakes: SimpleNamespace, opened: list[Any]) -> None:
    with Lira.open("bundle", tokenizer=fakes.FakeTokenizer()):
        assert "closed" not in opened
    assert opened[1:] == ["closed"] * 5
