"""An answer over HTTP is the runtime's: token for token, mask bit for bit, event for event."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from lira_runtime import Lira, preprocess
from lira_runtime.answer import Answer, FinishedEvent, PhraseEvent
from lira_runtime.events import MaskEvent, RegionEvent, TokenEvent
from lira_runtime.images import open_image
from lira_runtime.prompts import Question
from lira_runtime.scene import Scene

FISH = "Is there a fish in the image? Please answer yes or no."


@dataclass(frozen=True)
class Case:
    task: str | None
    text: str = ""
    ilvc: str = "auto"
    max_tiles: int | None = None

    @property
    def question(self) -> Question:
        return Question(self.text or None, self.task, ilvc=self.ilvc)  # type: ignore[arg-type]

    @property
    def body(self) -> dict[str, Any]:
        options = {"task": self.task, "ilvc": self.ilvc, "max_tiles": self.max_tiles}
        return {"lira": {name: value for name, value in options.items() if value is not None}}

    def __str__(self) -> str:
        return "-".join(str(part) for part in (self.task, self.ilvc, self.max_tiles) if part is not None)


CASES = [
    *(Case("refseg", "the orange star", ilvc) for ilvc in ("auto", "off", "plain")),
    *(Case("gcg", "", ilvc) for ilvc in ("auto", "off", "plain")),
    Case("vqa", FISH),
    Case("caption"),
    Case(None, "Please segment the yellow circle.", "on"),
    Case("refseg", "the yellow circle", max_tiles=4),
    Case("gcg", max_tiles=4),
]


@pytest.fixture(scope="module")
def scenes(lira: Lira, sample: str) -> dict[int | None, Scene]:
    """The sample, looked at with each number of tiles."""
    return {tiles: lira.look(sample, max_tiles=tiles) for tiles in {case.max_tiles for case in CASES}}


@pytest.fixture(scope="module")
def runtimes(scenes: dict[int | None, Scene]) -> dict[Case, list[Any]]:
    """The events of the runtime for each case."""
    return {case: list(scenes[case.max_tiles].stream(case.question)) for case in CASES}


def answer_of(events: list[Any]) -> Answer:
    assert isinstance(events[-1], FinishedEvent)
    return events[-1].answer


def events_of(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["lira"] for chunk in chunks if "lira" in chunk]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


def in_order(event: Any) -> tuple[Any, ...]:
    """What an event of the runtime is, told as one of the server's is by `told_in_order`."""
    match event:
        case TokenEvent():
            return ("text", event.step, event.token_id, event.text)
        case MaskEvent():
            return ("mask", event.index, event.token_step)
        case RegionEvent():
            return ("region", event.mask_index, list(event.box_xyxy))
        case PhraseEvent():
            phrase = event.phrase
            return ("phrase", event.mask_index, phrase.text, phrase.start, phrase.end)
    raise AssertionError(event)


def told_in_order(chunk: dict[str, Any]) -> tuple[Any, ...]:
    event = chunk["lira"]
    match event["type"]:
        case "text":
            added = chunk["choices"][0]["delta"].get("content", "")
            return ("text", event["step"], event["token_id"], added)
        case "mask":
            return ("mask", event["id"], event["step"])
        case "region":
            return ("region", event["mask"], event["box"])
        case "phrase":
            return ("phrase", event["mask"], event["text"], event["start"], event["end"])
    raise AssertionError(event)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_streamed_answer_is_the_runtimes(case: Case, served: Any, runtimes: dict[Case, list[Any]]) -> None:
    found = runtimes[case]
    answer = answer_of(found)
    chunks = served.stream(case.text, **case.body)
    told = [chunk for chunk in chunks if "lira" in chunk]
    kinds = [chunk["lira"]["type"] for chunk in told]
    assert kinds[0] == "look" and kinds[-2:] == ["timings", "finish"]
    assert [told_in_order(chunk) for chunk in told[1:-2]] == [in_order(event) for event in found[:-1]]
    assert text_of(chunks) == answer.text
    times = [chunk["lira"]["t"] for chunk in told]
    assert times == sorted(times) and times[0] > 0
    masks = [event for event in events_of(chunks) if event["type"] == "mask"]
    check_masks(masks, answer)
    finish = told[-1]["lira"]
    check_told(finish, answer, case)
    assert [mask["id"] for mask in finish["masks"]] == list(range(len(answer.masks)))
    assert not any("rle" in mask for mask in finish["masks"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_whole_answer_is_the_runtimes(case: Case, served: Any, runtimes: dict[Case, list[Any]]) -> None:
    answer = answer_of(runtimes[case])
    found = served.chat(case.text, **case.body)
    (choice,) = found["choices"]
    assert choice["message"]["content"] == answer.text
    assert choice["finish_reason"] == answer.finish_reason
    check_masks(choice["message"]["lira"]["masks"], answer)
    check_told(choice["message"]["lira"], answer, case)
    assert found["usage"]["completion_tokens"] == len(answer.token_ids)
    assert found["usage"]["prompt_tokens"] == answer.timings.prompt_tokens


def check_masks(masks: list[dict[str, Any]], answer: Answer) -> None:
    """The masks are the runtime's, bit for bit, for a reader of COCO's run lengths."""
    assert len(masks) == len(answer.masks)
    for index, (told, mask) in enumerate(zip(masks, answer.masks, strict=True)):
        assert told["id"] == index
        assert told["score"] == mask.score
        assert (None if told["box"] is None else tuple(told["box"])) == mask.box_xyxy
        rle = {"size": told["rle"]["size"], "counts": told["rle"]["counts"].encode()}
        assert np.array_equal(coco.decode(rle), mask.binary)
        assert int(coco.area(rle)) == int(mask.binary.sum())


def check_told(told: dict[str, Any], answer: Answer, case: Case) -> None:
    assert told["raw_text"] == answer.raw_text
    assert told["finish_reason"] == answer.finish_reason
    assert told["regions"] == [
        {"mask": region.mask_index, "box": list(region.box_xyxy)} for region in answer.regions
    ]
    assert len(told["phrases"]) == len(answer.phrases)
    for said, phrase in zip(told["phrases"], answer.phrases, strict=True):
        assert (said["text"], said["start"], said["end"]) == (phrase.text, phrase.start, phrase.end)
        assert (None if said["mask"] is None else answer.masks[said["mask"]]) is phrase.mask
        if said["start"] < said["end"]:
            assert answer.text[said["start"] : said["end"]] == said["text"]
    assert told["image"]["width"] == told["image"]["height"] == 640
    tiles = case.max_tiles or 1
    assert told["image"]["tiles"] <= tiles + (tiles > 1)
    assert told["timings"]["new_tokens"] == len(answer.token_ids)


def test_the_cases_are_not_all_alike(
    runtimes: dict[Case, list[Any]], scenes: dict[int | None, Scene]
) -> None:
    """Regions with ILVC and none without, more rows with more tiles, masks and none: else little is shown."""
    asked = {str(case): answer_of(events) for case, events in runtimes.items()}
    assert len(asked["gcg-auto"].regions) == 4
    assert not asked["gcg-off"].regions and not asked["gcg-plain"].regions
    assert asked["gcg-off"].token_ids != asked["gcg-auto"].token_ids != asked["gcg-plain"].token_ids
    assert len(asked["refseg-auto"].masks) == 1 and not asked["vqa-auto"].masks
    assert asked["gcg-auto-4"].timings.prompt_tokens > asked["gcg-auto"].timings.prompt_tokens
    assert scenes[4].tiles == 5


def test_a_mask_comes_before_the_region_that_uses_it_and_a_phrase_after_its_mask(served: Any) -> None:
    events = events_of(served.stream("", lira={"task": "gcg"}))
    known: set[int] = set()
    for event in events:
        match event["type"]:
            case "mask":
                assert event["id"] == len(known)
                known.add(event["id"])
            case "region" | "phrase":
                assert event["mask"] in known
    assert len(known) == 8


def test_usage_by_hand(served: Any, lira: Lira, sample: str) -> None:
    """Text tokens by the tokenizer; rows of the image: tiles, two separators, pixel tokens, valid queries."""
    encode = lira.tokenizer.encode
    pixels = preprocess.pixel_input(open_image(sample), lira.manifest.preprocessing.pixel)
    valid = int(lira.engines.pixel_encoder.run({"pixel_values": pixels})["query_valid"].sum())
    pixel_tokens = int(lira.manifest.stages["sefe"].outputs["pixel_tokens"].shape[1])  # type: ignore[arg-type]
    tile_rows = (lira.manifest.preprocessing.tile.size // 14 // 2) ** 2
    image = tile_rows + 1 + pixel_tokens + 1 + valid
    before = len(encode("<|im_start|>system\nYou are LIRA.<|im_end|><|im_start|>user\n"))
    after = len(encode(f"\n{FISH}<|im_end|><|im_start|>assistant\n"))
    served.chat("x", lira={"task": "vqa"})  # now the rows up to the question are in the cache, whatever ran
    usage = served.chat(FISH)["usage"]
    assert usage == {
        "prompt_tokens": before + image + after,
        "completion_tokens": 2,  # Yes, <|im_end|>
        "total_tokens": before + image + after + 2,
        "prompt_tokens_details": {"cached_tokens": before + image},
    }


def test_logprobs_are_the_runtimes(served: Any, scenes: dict[int | None, Scene], lira: Lira) -> None:
    question = Question(None, "gcg", logprobs=True)
    tokens = [event for event in scenes[None].stream(question) if isinstance(event, TokenEvent)]
    expected = [(lira.tokenizer.decode([token.token_id]), token.logprob) for token in tokens]
    found = served.chat("", logprobs=True, lira={"task": "gcg"})["choices"][0]
    content = found["logprobs"]["content"]
    assert [(one["token"], one["logprob"]) for one in content] == expected
    chunks = served.stream("", logprobs=True, lira={"task": "gcg"})
    streamed = [
        one
        for chunk in chunks
        if chunk["choices"] and chunk["choices"][0]["logprobs"]
        for one in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == content


def test_attributes_are_the_runtimes(served: Any, runtimes: dict[Case, list[Any]]) -> None:
    words = ["orange", "red", "blue", "yellow"]
    answer = answer_of(runtimes[Case("gcg")])
    told = served.chat("", lira={"task": "gcg", "attributes": words})["choices"][0]["message"]["lira"]
    assert [one["mask"] for one in told["attributes"]] == list(range(len(answer.masks)))
    for index, one in enumerate(told["attributes"]):
        expected = answer.attributes(words, index, len(words))
        assert [(word["word"], word["probability"]) for word in one["words"]] == expected
    assert told["attributes"][0]["words"][0]["word"] == "orange"


def test_sampling_is_the_runtimes(served: Any, scenes: dict[int | None, Scene]) -> None:
    question = Question(None, "caption", temperature=1.5, top_p=0.9, top_k=40, seed=11, max_new_tokens=20)
    answer = scenes[None].ask(question)
    assert answer.token_ids != scenes[None].ask(task="caption").token_ids
    options = {"temperature": 1.5, "top_p": 0.9, "seed": 11, "max_tokens": 20}
    told = served.chat("", **options, lira={"task": "caption", "top_k": 40})["choices"][0]["message"]
    assert told["content"] == answer.text and told["lira"]["raw_text"] == answer.raw_text


def test_timings_tell_how_long_a_question_waited(served: Any, serve: SimpleNamespace) -> None:
    body = {"messages": [serve.question("the fish", serve.data_uri())], "lira": {"task": "refseg"}}
    with served.client() as client:
        whole = client.post("/v1/chat/completions", json=body).json()
        streamed = client.post("/v1/chat/completions", json=body | {"stream": True}).text
    assert 0 <= whole["choices"][0]["message"]["lira"]["timings"]["queue"] < serve.wait
    told = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    timings = [one["lira"] for one in told if one.get("lira", {}).get("type") == "timings"]
    finish = [one["lira"] for one in told if one.get("lira", {}).get("type") == "finish"]
    assert timings[0]["queue"] == finish[0]["timings"]["queue"] >= 0
