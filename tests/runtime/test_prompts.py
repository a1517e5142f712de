"""Every option of a question reaches its prompt and its sampler."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_runtime import Question, Turn
from lira_runtime.prompts import Prompt, build_prompt, encodes_regions
from lira_runtime.sampling import make_sampler


def prompt(fakes: SimpleNamespace, question: str | None = None, **options: Any) -> Prompt:
    manifest = fakes.fake_manifest()
    return build_prompt(
        manifest.prompts, manifest.tokens, fakes.FakeTokenizer(), Question(question, **options)
    )


@pytest.mark.parametrize("logprobs", [False, True])
def test_sampling_is_what_the_question_asks(fakes: SimpleNamespace, logprobs: bool) -> None:
    logits = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    drawn = []
    for changed in ({}, {"temperature": 5.0}, {"top_k": 2}, {"top_p": 0.4}, {"seed": 2}):
        options: dict[str, Any] = {"temperature": 1.0, "seed": 1, **changed}
        asked = Question("it", logprobs=logprobs, **options).sampler(fakes.fake_manifest().tokens)
        expected = make_sampler(**options)
        drawn.append([asked(logits) for _ in range(100)])
        assert drawn[-1] == [expected(logits) for _ in range(100)], changed
    assert len(set(map(tuple, drawn))) == len(drawn)


def test_a_question_has_a_tasks_length_its_own_or_that_of_upstreams_demo(fakes: SimpleNamespace) -> None:
    assert prompt(fakes, "it").max_new_tokens == 512
    assert [prompt(fakes, task=task).max_new_tokens for task in ("gcg",)] == [100]
    assert prompt(fakes, "it", task="vqa").max_new_tokens == 20
    assert prompt(fakes, "it", max_new_tokens=7).max_new_tokens == 7
    assert prompt(fakes, "it", task="vqa", max_new_tokens=900).max_new_tokens == 900


@pytest.mark.parametrize("ilvc", ["auto", "on", "off", "plain"])
def test_only_without_ilvc_a_task_takes_its_other_prompt(fakes: SimpleNamespace, ilvc: Any) -> None:
    """ "plain" reads <image_id> as a token, of an answer to the usual prompt."""
    found = prompt(fakes, task="refseg", expression="ball", ilvc=ilvc).question
    assert found == ("the ball." if ilvc == "off" else "segment ball.")
    assert prompt(fakes, "it", task="vqa", ilvc=ilvc).question == "it"


def test_every_stop_token_of_a_task_ends_its_answer(fakes: SimpleNamespace) -> None:
    assert prompt(fakes, "ball", task="refseg").stop_ids == {fakes.EOS, fakes.IMAGE_ID}
    assert prompt(fakes, task="gcg").stop_ids == prompt(fakes, "it").stop_ids == {fakes.EOS}


def test_the_first_end_token_closes_an_earlier_answer(fakes: SimpleNamespace) -> None:
    manifest = fakes.fake_manifest()
    tokens = replace(manifest.tokens, eos=(fakes.EOS, fakes.ID["<s>"]))
    asked = Question("red", history=[Turn("it", "a")])
    assert build_prompt(manifest.prompts, tokens, fakes.FakeTokenizer(), asked).after[0] == fakes.EOS


def test_regions_are_encoded_with_ilvc_alone() -> None:
    found = {ilvc: encodes_regions(ilvc) for ilvc in ("auto", "on", "off", "plain")}  # type: ignore[arg-type]
    assert found == {"auto": True, "on": True, "off": False, "plain": False}
