"""Texts that end an answer, over HTTP: what is shown, streamed or not, and what was made of masks by then.

The whole answer: [SEG]<image_id> <p> an orange star </p> [SEG], [SEG]<image_id> <p> a house </p> [SEG] ...
"""

from __future__ import annotations

from typing import Any

import pytest

FISH = "Is there a fish in the image? Please answer yes or no."
GCG = "an orange star, a house, a yellow circle and a fish."


@pytest.fixture(scope="module")
def masks_of_all(served: Any) -> list[dict[str, Any]]:
    """The masks of the answer that nothing stops."""
    found: list[dict[str, Any]] = served.chat("", lira={"task": "gcg"})["choices"][0]["message"]["lira"][
        "masks"
    ]
    return found


@pytest.mark.parametrize(
    ("stop", "content", "masks", "phrases"),
    [
        ("an", "", 1, []),
        (" star", "an orange", 1, []),
        ("tar", "an orange s", 1, []),
        (",", "an orange star", 2, [0]),  # the phrase's second mask is read while the comma is chosen
        (", a", "an orange star", 3, [0]),
        ("e, a y", "an orange star, a hous", 5, [0]),
        (["fish", "house"], "an orange star, a ", 3, [0]),
        ("fish.", "an orange star, a house, a yellow circle and a ", 8, [0, 2, 4]),
        ("fishes", GCG, 8, [0, 2, 4, 6]),
        (". ", GCG, 8, [0, 2, 4, 6]),  # held back to the end
    ],
)
def test_a_stop_text_in_a_stream(
    served: Any,
    stop: str | list[str],
    content: str,
    masks: int,
    phrases: list[int],
    masks_of_all: list[dict[str, Any]],
) -> None:
    chunks = served.stream("", stop=stop, lira={"task": "gcg"})
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == content
    events = [chunk["lira"] for chunk in chunks if "lira" in chunk]
    made = [event for event in events if event["type"] == "mask"]
    assert [one["rle"] for one in made] == [one["rle"] for one in masks_of_all[:masks]]
    assert [event["mask"] for event in events if event["type"] == "phrase"] == phrases
    finish = events[-1]
    assert [phrase["mask"] for phrase in finish["phrases"]] == phrases
    assert all(content[one["start"] : one["end"]] == one["text"] for one in finish["phrases"])
    assert [mask["id"] for mask in finish["masks"]] == list(range(masks))
    assert chunks[-1]["choices"][0]["finish_reason"] == finish["finish_reason"] == "stop"


def test_a_stop_text_in_a_whole_answer(served: Any, masks_of_all: list[dict[str, Any]]) -> None:
    (choice,) = served.chat("", stop=", a", lira={"task": "gcg"})["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("an orange star", "stop")
    told = choice["message"]["lira"]
    assert told["masks"] == masks_of_all[:3]
    assert [phrase["text"] for phrase in told["phrases"]] == ["an orange star"]


def test_a_stop_text_as_the_first_token_of_a_short_answer(served: Any) -> None:
    found = served.chat(FISH, stop="Y")["choices"][0]
    assert (found["message"]["content"], found["finish_reason"]) == ("", "stop")


def test_logprobs_beside_a_stop_text(served: Any) -> None:
    found = served.chat("", stop=" house", logprobs=True, lira={"task": "gcg"})
    content = found["choices"][0]["logprobs"]["content"]
    assert len(content) == found["usage"]["completion_tokens"]
    assert [one["token"].strip() for one in content[-2:]] == ["house", "<|im_end|>"]
    assert content[-1]["logprob"] < -1  # the model would have gone on
