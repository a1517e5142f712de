"""The rules of the authors' evaluation scripts: the effect of each, and evaluations by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from lira_bench.accuracy import attreval, gcg, pope, refseg, vqa
from lira_bench.accuracy.items import Dataset, Item, LeftOut, Question, Record, Source
from lira_bench.accuracy.protocol import STRICT, Protocol, protocol_for
from lira_bench.accuracy.text_answers import gqa_shortened, textvqa_normalised
from lira_engine.bundle.manifest import Manifest
from lira_runtime import Answer, Lira, Scene, rle
from lira_runtime.beam import beam_search

if TYPE_CHECKING:
    from .conftest import Evaluate

SIZE = (4, 6)


def rules(task: str, benchmark: str | None = None) -> Protocol:
    return protocol_for("authors", task, benchmark)


def columns(*filled: int) -> np.ndarray:
    """Return a 4 x 6 mask of whole columns, 4 pixels each."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[:, filled] = True
    return mask


def said(text: str) -> Answer:
    return cast("Answer", SimpleNamespace(text=text, masks=[]))


def with_masks(
    *masks: np.ndarray, phrases: tuple[tuple[str, int | None], ...] = (), regions: Any = ()
) -> Any:
    made = [SimpleNamespace(binary=mask) for mask in masks]
    named = [SimpleNamespace(text=t, mask=None if at is None else made[at]) for t, at in phrases]
    taken = [SimpleNamespace(mask_index=index) for index in regions]
    return SimpleNamespace(masks=made, phrases=named, regions=taken, text="")


def referred(
    found: np.ndarray | None, segmentations: tuple[Any, ...], protocol: Protocol
) -> tuple[Item, Record]:
    item = Item("x", "a.png", (Question("refseg", "it"),), {}, masks=segmentations, size=SIZE)
    masks = [] if found is None else [found]
    truth = [rle.decode(s) if isinstance(s, dict) else columns(*range(6)) for s in segmentations]
    scores = refseg.judge(item, [with_masks(*masks)], truth, protocol)
    return item, {"scores": scores, "answers": [{"masks": masks}]}


def test_refseg_answers_without_a_mask_are_in_no_sum() -> None:
    ours, authors = STRICT, rules("refseg")
    for protocol, ciou, giou in ((ours, 4 / 16, 1 / 3), (authors, 4 / 8, 0.5 / 3)):
        scored = [
            referred(columns(0), (rle.encode(columns(0, 1)),), protocol),  # 4 of 8
            referred(None, (rle.encode(columns(2, 3)),), protocol),
            # Nothing is there, and nothing was said: right by our rules, by theirs 0.
            referred(None, (), protocol),
        ]
        found = refseg.total(scored, protocol)
        giou = giou if protocol is authors else (0.5 + 0 + 1) / 3
        assert (found["ciou"], found["giou"]) == (pytest.approx(ciou), pytest.approx(giou, abs=1e-6))
        assert found["without_mask"] == 2
    nothing = refseg.total([referred(None, (rle.encode(columns(2)),), authors)], authors)
    assert (nothing["ciou"], nothing["giou"]) == (None, 0.0)


def test_refseg_pixels_of_two_polygons_belong_to_no_mask() -> None:
    left, right = [0, 0, 4, 0, 4, 4, 0, 4], [2, 0, 6, 0, 6, 4, 2, 4]  # columns 0..3 and 2..5
    everything = columns(*range(6))
    for protocol, intersection in ((STRICT, 24), (rules("refseg"), 16)):
        _, record = referred(everything, ([left, right],), protocol)
        assert (record["scores"]["intersection"], record["scores"]["union"]) == (intersection, 24)
    # gRefCOCO: several annotations are joined bit by bit, so that one polygon over another one stays 1.
    _, record = referred(everything, ([left], [right]), rules("refseg"))
    assert record["scores"]["intersection"] == 24


def test_gcg_counts_the_masks_taken_at_image_id() -> None:
    """Of three [SEG], the first has a region, the second a phrase without one, and the third closes it."""
    answer = with_masks(
        columns(0), columns(1), columns(0), phrases=(("a dog", 0), ("a cat", 1)), regions=(0,)
    )
    truth = [columns(0), columns(1)]
    item = Item(
        "x", "a.png", (Question("gcg"),), {"phrases": ["a dog", "a cat"]}, tuple(map(rle.encode, truth))
    )
    plain = {
        "masks": [{"rle": rle.encode(mask.binary)} for mask in answer.masks],
        "phrases": [{"mask": 0}, {"mask": 1}],
        "regions": [{"mask": 0}],
    }
    for protocol, masks, named in ((STRICT, 2, 1.0), (rules("gcg"), 1, 0.5)):
        scores = gcg.judge(item, [answer], truth, protocol)
        found = gcg.total([(item, {"scores": scores, "answers": [plain], "size": list(SIZE)})], protocol)
        assert (found["masks"], found["recall"], found["phrase_recall"]) == (masks, masks / 2, named)
    nameless = with_masks(columns(0), regions=(0,))
    assert gcg.judge(item, [nameless], truth, rules("gcg"))["named"] == 0


@pytest.mark.parametrize(
    ("benchmark", "truth", "text", "strict", "authors"),
    [
        ("vqav2", ["2"], "Two", 1.0, 0.0),
        ("vqav2", ["Two"], " two ", 1.0, 1.0),
        ("vqav2", ["a cat"], "cat.", 1.0, 0.0),
        ("vqav2", ["x"] * 7 + ["2"] * 3, "two", 0.9, 0.9),
        ("vqav2", ["x"] * 7 + ["red,blue"] * 3, "red blue", 0.9, 0.0),  # the comma goes, without a blank
        ("vqav2", ["x"] * 6 + ["the cats"] * 4, "cat's", 1.0, 0.0),
        ("vqav2", ["x"] * 6 + ["don't"] * 4, "dont", 1.0, 1.0),
        ("gqa", ["table"], "It is the table of wood.", 0.0, 1.0),
        ("ai2d", ["B"], "b", 1.0, 1.0),
    ],
)
def test_vqa_rates_texts_by_the_protocol(
    benchmark: str, truth: list[str], text: str, strict: float, authors: float
) -> None:
    item = Item("x", "a.png", (Question("vqa", "?"),), {"answers": truth})
    for protocol, expected in ((STRICT, strict), (rules("vqa", benchmark), authors)):
        score = vqa.judge(item, [said(text)], [], protocol)
        assert vqa.total([(item, {"scores": score})], protocol)["accuracy"] == pytest.approx(expected)


def test_texts_are_normalised_as_the_authors_do() -> None:
    assert textvqa_normalised("The man's, isn't he?\nOne 1.5 hot-dog") == "man 's isnt he 1 1.5 hot dog"
    assert gqa_shortened("They are on a bench, near it") == "bench"
    assert gqa_shortened("Yes!") == "yes"


def test_attreval_takes_only_the_bare_word() -> None:
    item = Item("x", "a.png", (Question("vqa", "?"), Question("vqa", "?")), {"kind": "color"})
    record = {"scores": {"kind": "color"}, "answers": [{"text": "Yes, it is"}, {"text": " no "}]}
    assert attreval.total([(item, record)])["all.paired"] == 1.0
    found = attreval.total([(item, record)], rules("attreval"))
    assert (found["all.paired"], found["all.single"]) == (0.0, 0.5)


def test_pope_words_end_at_blanks_and_categories_are_rated() -> None:
    items = [
        Item("x", "a.png", (Question("vqa", "?"),), {"yes": False, "category": category})
        for category in ("random", "popular")
    ]
    for protocol, right in ((STRICT, 1.0), (rules("pope"), 0.5)):
        answers = ("It is\nnot", "it is not, no")
        scored = [
            (item, {"scores": pope.judge(item, [said(text)], [], protocol)})
            for item, text in zip(items, answers, strict=True)
        ]
        found = pope.total(scored, protocol)
        assert (found["accuracy"], found["random.accuracy"], found["popular.accuracy"]) == (
            right,
            2 * right - 1,
            1.0,
        )


def test_pope_appends_no_second_instruction(tmp_path: Path) -> None:
    instruction = rules("pope").instruction
    texts = ("Is there a dog?", f"Is there a cat?{instruction}")
    lines = [json.dumps({"image": "a.png", "text": text, "label": "yes"}) for text in texts]
    (tmp_path / "pope.jsonl").write_text("\n".join(lines))
    items = pope.read(Source(tmp_path, instruction=instruction)).items
    assert [item.questions[0].text for item in items] == [
        f"Is there a {animal}?\nAnswer the question using a single word or phrase."
        for animal in ("dog", "cat")
    ]


def test_rules_choose_the_evaluated_entries() -> None:
    asked = tuple(Item(str(n), "a.png", (Question("vqa", "?"),), {}) for n in range(20_001))
    assert len(Dataset(asked).chosen_by(rules("vqa")).entries) == 4_000
    assert len(Dataset(asked[:20_000]).chosen_by(rules("vqa")).entries) == 20_000
    assert len(Dataset(asked).chosen_by(STRICT).entries) == 20_001
    ranked = Dataset((replace(asked[0], words=("red", "blue")), LeftOut("y", "damaged")))
    assert ranked.chosen_by(rules("attreval")).entries == (
        LeftOut("0", "protocol authors ranks no words"),
        LeftOut("y", "damaged"),
    )


def test_options_change_single_rules() -> None:
    changed = rules("refseg").changed("off", None, 2)
    assert (changed.ilvc, changed.min_tiles, changed.max_tiles, changed.bos) == ("off", 2, 2, True)
    assert rules("vqa").changed(None, "", None).instruction == ""
    assert STRICT.changed(None, None, None) == STRICT
    assert rules("vqa", "vizwiz").instruction == (
        "When the provided information is insufficient, respond with 'unanswerable'. "
        "Answer the question using a single word or phrase."
    )
    assert rules("vqa", "ai2d").instruction is None


class Asked:
    """Records the calls of the runtime."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tiles: list[dict[str, Any]] = []
        self.prompts: list[Any] = []
        self.ilvc: list[bool] = []
        self.beams: list[tuple[int, ...]] = []
        look, stream, search = Lira.look, Scene.stream_prompt, Scene.search_prompt

        def looked(lira: Lira, image: Any, **tiles: Any) -> Scene:
            self.tiles.append(tiles)
            return look(lira, image, **tiles)

        def streamed(scene: Scene, prompt: Any, *more: Any, **options: Any) -> Any:
            self.prompts.append(prompt)
            self.ilvc.append(options.get("use_ilvc", True))
            return stream(scene, prompt, *more, **options)

        def searched(scene: Scene, prompt: Any, *more: int) -> Answer:
            self.prompts.append(prompt)
            self.beams.append(more)
            return search(scene, prompt, *more)

        monkeypatch.setattr(Lira, "look", looked)
        monkeypatch.setattr(Scene, "stream_prompt", streamed)
        monkeypatch.setattr(Scene, "search_prompt", searched)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


@pytest.fixture(scope="module")
def manifest(evaluate: Evaluate) -> Manifest:
    with Lira.open(evaluate.bundle, threads=1) as lira:
        return lira.manifest


def test_an_evaluation_of_refseg_follows_the_authors(
    evaluate: Evaluate, asked: Asked, manifest: Manifest
) -> None:
    assert evaluate("refseg", "out", "--protocol", "authors", "--limit", 2) == 0
    tokens = manifest.tokens
    for prompt in asked.prompts:
        assert prompt.before[:2] == (tokens.bos, prompt.before[1]) and prompt.before[1] != tokens.bos
        assert prompt.stop_ids == {*tokens.eos, tokens.image_id} and prompt.max_new_tokens == 100
    assert asked.tiles[0] == {"max_tiles": 12, "min_tiles": 4}
    # 384 x 384 pixels are 2 x 2 tiles, or 3 x 3 where these have more than half of the pixels.
    assert evaluate.report("out")["run"]["protocol"]["name"] == "authors"


def test_evaluations_of_vqa_and_attreval_follow_the_authors(
    evaluate: Evaluate, asked: Asked, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("vqa", "vqa", "--protocol", "authors", "--limit", 2) == 0
    assert evaluate.report("vqa")["run"]["ilvc"] == "plain"
    printed = capsys.readouterr().out
    assert printed.startswith("vqa, authors")
    instruction = " Answer the question using a single word or phrase."
    assert all(prompt.question.endswith(instruction) for prompt in asked.prompts) and asked.prompts
    assert {prompt.max_new_tokens for prompt in asked.prompts} == {10}
    assert not asked.ilvc[-1] and asked.tiles == [{"max_tiles": 6, "min_tiles": 4}]
    asked.prompts.clear()
    assert evaluate("attreval", "pairs", "--protocol", "authors", "--limit", 1) == 0
    assert not any(prompt.question.endswith(instruction) for prompt in asked.prompts) and asked.prompts
    counts = evaluate.report("pairs")["counts"]
    assert (counts["evaluated"], counts["left_out"]) == (1, 1)


def test_an_end_token_is_never_the_first_token(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, manifest: Manifest
) -> None:
    """As with transformers' min_new_tokens=1, `</s>` cannot be the first token, but may end the answer."""
    end = manifest.tokens.eos[1]
    embed = Lira.embed
    opened = Lira.open

    def open_with_an_llm_that_ends(*arguments: Any, **options: Any) -> Lira:
        lira = opened(*arguments, **options)
        forward = lira.engines.llm.forward

        def ending(*given: Any, **more: Any) -> Any:
            output = forward(*given, **more)
            logits = output.logits.copy()
            logits[:, end] = 99
            return replace(output, logits=logits)

        llm = SimpleNamespace(
            forward=ending,
            new_cache=lira.engines.llm.new_cache,
            capacity=lira.engines.llm.capacity,
            close=lira.engines.llm.close,
        )
        lira.engines = replace(lira.engines, llm=cast("Any", llm))
        return lira

    monkeypatch.setattr(Lira, "open", open_with_an_llm_that_ends)
    assert evaluate("vqa", "strict", "--limit", 1) == 0
    assert evaluate("vqa", "authors", "--protocol", "authors", "--limit", 1) == 0
    strict, authors = (evaluate.samples(out)[0]["answers"][0] for out in ("strict", "authors"))
    assert strict["token_ids"] == [end] and strict["finish_reason"] == "stop"
    assert len(authors["token_ids"]) == 2 and authors["token_ids"][1] == end != authors["token_ids"][0]
    assert Lira.embed is embed


def test_an_evaluation_of_pope_follows_the_authors(
    evaluate: Evaluate, asked: Asked, manifest: Manifest
) -> None:
    assert evaluate("pope", "out", "--protocol", "authors", "--limit", 3, "--compare", "cpu-int4") == 0
    assert asked.beams == [(5, 1)] * 6  # both engines
    assert asked.tiles == [{"max_tiles": 8, "min_tiles": 4}] * 2
    other = evaluate.report("out/compare-cpu-int4")
    assert other["run"]["protocol"] == evaluate.report("out")["run"]["protocol"]
    assert other["comparison"]["token_agreement"] > 0.5
    (first, *_) = evaluate.samples("out")
    line = "\nAnswer the question using a single word or phrase."
    assert first["answers"][0]["question"].count(line) == 1
    end, *closing = manifest.tokens.eos
    with Lira.open(evaluate.bundle, threads=1) as lira:
        scene = lira.look(evaluate.data / "images" / first["image"], max_tiles=8, min_tiles=4)
        prompt = lira.prompt(task="vqa", expression=first["answers"][0]["question"])
        rows = np.concatenate([lira.embed(prompt.before), scene._rows.image, lira.embed(prompt.after)])
        llm = lira.engines.llm
        found = beam_search(llm, llm.new_cache(), rows, lira.embed, 5, 100, closing, (end,), 1)
    assert first["answers"][0]["token_ids"] == list(found)
    assert first["answers"][0]["finish_reason"] == "stop"


def test_an_evaluation_of_gcg_follows_the_authors(
    evaluate: Evaluate, asked: Asked, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("gcg", "out", "--protocol", "authors", "--limit", 1) == 0
    (sample,) = evaluate.samples("out")
    assert sample["answers"][0]["question"].startswith("Can you provide a thorough description")
    assert sample["scores"]["found"] == len(sample["answers"][0]["regions"]) > 0
    assert {prompt.max_new_tokens for prompt in asked.prompts} == {100}
    assert {prompt.stop_ids for prompt in asked.prompts} == {frozenset(manifest.tokens.eos[:1])}
    # The same without regions: all six are asked, and the last answer counts.
    assert evaluate("gcg", "off", "--protocol", "authors", "--limit", 1, "--ilvc", "off") == 0
    (sample,) = evaluate.samples("off")
    assert sample["answers"][0]["question"].startswith("Could you provide me with a detailed analysis")
    assert sample["scores"]["found"] == 0
    capsys.readouterr()
    # Another protocol is another evaluation.
    assert evaluate("gcg", "out", "--limit", 1) == 2
    error = capsys.readouterr().err
    assert "protocol.name authors, this one has strict" in error and "--overwrite" in error


def test_an_evaluation_of_chair_follows_the_authors(
    evaluate: Evaluate, asked: Asked, manifest: Manifest
) -> None:
    assert evaluate("chair", "out", "--protocol", "authors", "--limit", 1) == 0
    assert asked.tiles == [{"max_tiles": 6, "min_tiles": 1}]
    for prompt in asked.prompts:
        assert prompt.question == "Provide an in-depth description of this image."
        assert prompt.stop_ids == set(manifest.tokens.eos[:1]) and prompt.max_new_tokens == 512


def test_compared_engines_read_the_asked_question(evaluate: Evaluate) -> None:
    assert evaluate("gcg", "out", "--protocol", "authors", "--limit", 1, "--compare", "portable") == 0
    found = json.loads(Path("out/compare-portable/report.json").read_text())["comparison"]
    assert found["token_agreement"] == 1.0 and found["mask_iou"] > 0.99


def test_max_tiles_sets_the_tiles_of_an_evaluation(evaluate: Evaluate, asked: Asked) -> None:
    assert evaluate("vqa", "out", "--max-tiles", 2, "--limit", 1) == 0
    assert asked.tiles == [{"max_tiles": 2}]
    assert evaluate.report("out")["run"]["protocol"]["max_tiles"] == 2
    assert evaluate.report("out")["run"]["protocol"]["name"] == "strict"


def test_too_many_tiles_leave_the_item_out(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lira_engine.ort.llm import OrtLlm

    monkeypatch.setattr(OrtLlm, "capacity", 200)
    assert evaluate("refseg", "out", "--protocol", "authors", "--limit", 1) == 2
    error = capsys.readouterr().err
    assert "expected at most 200: ask a shorter question, or allow fewer tiles than 10 (--max-tiles)" in error
    assert error.count("\n") == 1
