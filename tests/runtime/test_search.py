"""What `Scene.search_prompt` asks of a beam search, and what becomes of the tokens that it finds."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_engine.errors import LiraError
from lira_runtime import Lira, Scene, Turn


@pytest.fixture
def scene(fakes: SimpleNamespace) -> Scene:
    table = fakes.embed(range(len(fakes.VOCABULARY)))
    separators = np.full((2, fakes.WIDTH), -2, np.float32)
    lira = Lira(
        fakes.fake_manifest(), fakes.fake_engines([9, 9, 9]), fakes.FakeTokenizer(), table, separators
    )
    return lira.look(np.full((20, 40, 3), 200, np.uint8))


@pytest.mark.parametrize(
    "found, text, reason, answer",
    [
        ("▁it [SEG] <image_id>", "it", "stop", "▁it [SEG]"),
        ("▁it <|im_end|>", "it", "stop", "▁it"),
        ("▁it <|im_end|> ▁is", "it is", "length", "▁it <|im_end|> ▁is"),  # the end of a worse beam
    ],
)
def test_a_search_has_the_prompts_ends_and_gives_its_answer(
    scene: Scene,
    fakes: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    found: str,
    text: str,
    reason: str,
    answer: str,
) -> None:
    asked: dict[str, Any] = {}

    def beam_search(
        llm: Any,
        cache: Any,
        rows: np.ndarray,
        embed: Any,
        beams: int,
        most: int,
        ends: Collection[int],
        stops: Collection[int],
        least: int,
    ) -> tuple[int, ...]:
        asked.update(rows=rows[:, 0].tolist(), beams=beams, most=most, least=least)
        asked.update(ends=set(ends), stops=set(stops))
        return tuple(fakes.ID[piece] for piece in found.split())

    monkeypatch.setattr("lira_runtime.scene.beam_search", beam_search)
    prompt = scene._model.prompt(task="refseg", expression="ball", max_new_tokens=17)
    result = scene.search_prompt(prompt, 3, min_new_tokens=2)
    assert asked == {
        "rows": list(prompt.after),
        "beams": 3,
        "most": 17,
        "least": 2,
        "ends": {fakes.IMAGE_ID},
        "stops": {fakes.EOS},
    }
    assert (result.text, result.finish_reason) == (text, reason)
    assert result.token_ids == tuple(fakes.ID[piece] for piece in found.split())
    assert result.turn == Turn("segment ball.", tuple(fakes.ID[piece] for piece in answer.split()))


def test_a_search_that_fails_has_ended_older_streams(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise LiraError("not finite")

    monkeypatch.setattr("lira_runtime.scene.beam_search", fail)
    old = scene.stream("it")
    next(old)
    with pytest.raises(LiraError, match="not finite"):
        scene.search_prompt(scene._model.prompt("red"), 2)
    with pytest.raises(LiraError, match="one stream at a time"):
        next(old)
