"""The totals of each task, compared with numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from lira_bench.accuracy import attreval, bars, chair, gcg, pope, refseg, vqa
from lira_bench.accuracy.items import Item, Question, Record
from lira_runtime import Answer, rle

SIZE = (4, 5)


def columns(*filled: int) -> np.ndarray:
    """Return a 4 x 5 mask of whole columns, 4 pixels each."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[:, filled] = True
    return mask


def answered(*masks: np.ndarray, phrases: tuple[str, ...] = (), ranked: Any = None) -> Answer:
    """Return an answer with the fields that tasks read."""
    made = [SimpleNamespace(binary=mask) for mask in masks]
    named = [SimpleNamespace(text=text, mask=mask) for text, mask in zip(phrases, made, strict=False)]
    answer = SimpleNamespace(masks=made, phrases=named, text="", attributes=lambda words, top: ranked[:top])
    return cast("Answer", answer)


def texts(*said: str) -> list[dict[str, Any]]:
    return [{"text": text, "masks": []} for text in said]


def expression(found: tuple[np.ndarray, ...], truth: list[np.ndarray]) -> tuple[Item, Record]:
    item = Item("x", "a.png", (Question("refseg", "it"),), {}, masks=tuple(map(rle.encode, truth)), size=SIZE)
    scores = refseg.judge(item, [answered(*found)], truth)
    return item, {"scores": scores, "answers": [{"masks": list(found)}]}


def test_refseg_sums_intersections_and_unions() -> None:
    scored = [
        expression((columns(0, 1),), [columns(0)]),  # 4 of 8 pixels
        expression((columns(1, 2, 3),), [columns(1, 2, 3)]),  # 12 of 12
        expression((), [columns(0, 1)]),  # 0 of 8: no mask at all
    ]
    assert refseg.total(scored) == {
        "ciou": pytest.approx(16 / 28, abs=1e-6),
        "giou": pytest.approx((0.5 + 1 + 0) / 3, abs=1e-6),
        "expressions": 3,
        "without_mask": 1,
    }


def test_refseg_joins_several_targets_and_rates_none() -> None:
    scored = [
        expression((columns(0, 1, 2),), [columns(0), columns(1)]),  # 8 of 12: the union is the truth
        expression((columns(0),), []),  # nothing there, 4 pixels found: IoU 0, and 4 in the union
        expression((columns(),), []),  # nothing there, an empty mask: IoU 1
        expression((), []),  # nothing there, no mask: IoU 1
        expression((columns(),), [columns(4)]),  # one there, none found: 0 of 4
        *2 * [expression((columns(3),), [columns(3)])],  # 4 of 4
    ]
    assert refseg.total(scored) == {
        "ciou": pytest.approx((8 + 4 + 4) / (12 + 4 + 4 + 4 + 4), abs=1e-6),
        "giou": pytest.approx((8 / 12 + 0 + 1 + 1 + 0 + 1 + 1) / 7, abs=1e-6),
        "expressions": 7,
        "without_mask": 1,
        "n_acc": pytest.approx(2 / 3, abs=1e-6),
        "t_acc": pytest.approx(3 / 4),
        "no_target": 3,
    }


def grounded(
    found: list[np.ndarray], said: tuple[str, ...], truth: dict[str, np.ndarray]
) -> tuple[Item, Record]:
    item = Item(
        "x",
        "a.png",
        (Question("gcg"),),
        {"phrases": list(truth)},
        masks=tuple(rle.encode(mask) for mask in truth.values()),
    )
    scores = gcg.judge(item, [answered(*found, phrases=said)], list(truth.values()))
    answer = {
        "masks": [{"rle": rle.encode(mask)} for mask in found],
        "phrases": [{"mask": index} for index in range(len(found))],
    }
    return item, {"scores": scores, "answers": [answer], "size": list(SIZE)}


def test_gcg_pairs_found_and_true_masks() -> None:
    scored = [
        # IoU 1 with the right phrase, IoU 2/3 with a wrong one; nothing for the bird.
        grounded(
            [columns(0), columns(1, 2)],
            ("The dog", "a cow"),
            {"a dog": columns(0), "a cat": columns(1, 2, 3), "a bird": columns(4)},
        ),
        grounded([columns(0)], ("a dog",), {"a dog": columns(0, 1, 2)}),  # IoU 1/3: too little
    ]
    found = gcg.total(scored)
    assert found["recall"] == pytest.approx(2 / 4)
    assert found["phrase_recall"] == pytest.approx(1 / 4)
    assert found["miou"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2, abs=1e-6)
    # In order: right, right, wrong. Recall 1/2 with precision 1 is 51 of COCO's 101 points.
    assert found["ap50"] == pytest.approx(51 / 101, abs=1e-6)
    assert (found["images"], found["objects"], found["masks"]) == (2, 4, 3)


def test_vqa_averages_the_accuracy() -> None:
    def asked(truth: list[str], said: str) -> tuple[Item, Record]:
        item = Item("x", "a.png", (Question("vqa", "?"),), {"answers": truth})
        answer = cast("Answer", SimpleNamespace(text=said))
        return item, {"scores": vqa.judge(item, [answer], []), "answers": texts(said)}

    annotators = ["red"] * 2 + ["blue"] * 8  # of ten: 0.6 for red
    scored = [asked(["cat"], "A cat."), asked(["cat"], "dog"), asked(annotators, "red")]
    assert vqa.total(scored) == {"accuracy": pytest.approx((1 + 0 + 0.6) / 3, abs=1e-6), "questions": 3}


def test_pope_rates_the_answer_yes() -> None:
    def asked(truth: bool, said: str) -> tuple[Item, Record]:
        item = Item("x", "a.png", (Question("vqa", "?"),), {"yes": truth})
        answer = cast("Answer", SimpleNamespace(text=said))
        return item, {"scores": pope.judge(item, [answer], []), "answers": texts(said)}

    # yes is: right, right, right, wrong; no is: right, wrong, wrong.
    said = [(True, "Yes"), (True, "yes, one"), (True, "There is."), (False, "Yes")]
    said += [(False, "No."), (True, "No"), (True, "It is not")]
    assert pope.total([asked(truth, text) for truth, text in said]) == {
        "accuracy": pytest.approx(4 / 7, abs=1e-6),
        "f1": pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6), abs=1e-6),
        "precision": pytest.approx(3 / 4),
        "recall": pytest.approx(3 / 5),
        "yes_share": pytest.approx(4 / 7, abs=1e-6),
        "questions": 7,
        "unclear": 2,
    }


def pair(kind: str, to_yes: str, to_no: str) -> tuple[Item, Record]:
    item = Item("x", "a.png", (Question("vqa", "?"), Question("vqa", "?")), {"kind": kind})
    return item, {"scores": attreval.judge(item, [], []), "answers": texts(to_yes, to_no)}


def test_attreval_counts_pairs_with_both_answers_right() -> None:
    scored = [
        pair("color", "Yes", "No"),
        pair("color", "Yes", "Yes"),  # says yes to everything: not understood
        pair("location", "yes.", "No, right"),
        pair("location", "Perhaps", "Maybe"),
        pair("location", "No", "No"),
    ]
    assert attreval.total(scored) == {
        "all.paired": pytest.approx(2 / 5),
        "all.single": pytest.approx(6 / 10),
        "all.pairs": 5,
        "color.paired": pytest.approx(1 / 2),
        "color.single": pytest.approx(3 / 4),
        "color.pairs": 2,
        "location.paired": pytest.approx(1 / 3, abs=1e-6),
        "location.single": pytest.approx(3 / 6),
        "location.pairs": 3,
    }


def test_a_kind_named_all_counts_once() -> None:
    assert attreval.total([pair("all", "Yes", "No")])["all.pairs"] == 1


WORDS = ("red", "green", "blue", "pink", "grey", "black")
RANKED = [(word, 0.3 - index / 20) for index, word in enumerate(WORDS)]


def ranked(answers: list[str], *, mask: bool = True) -> tuple[Item, Record]:
    truth = {"kind": "color", "answers": answers}
    item = Item("x", "a.png", (Question("refseg", "the car"),), truth, words=WORDS)
    answer = answered(*([columns(0, 1)] if mask else []), ranked=RANKED)
    plain = [{"rle": rle.encode(columns(0, 1))}] if mask else []
    scores = attreval.judge(item, [answer], [])
    return item, {"scores": scores, "image": "a.png", "answers": [{"masks": plain}]}


def test_attreval_ranks_words_at_the_mask() -> None:
    scored = [ranked(["red"]), ranked(["blue", "pink"]), ranked(["black"]), ranked(["red"], mask=False)]
    assert [record["scores"]["rank"] for _, record in scored] == [1, 3, 6, None]
    assert scored[0][1]["scores"]["ranked"] == [[word, round(share, 4)] for word, share in RANKED[:5]]
    found = attreval.total(scored)
    assert (found["color.top1"], found["color.top3"], found["color.top5"]) == (0.25, 0.5, 0.5)
    assert found["color.chance"] == pytest.approx((1 + 2 + 1 + 1) / 6 / 4, abs=1e-6)
    assert found["color.expressions"] == found["all.expressions"] == 4


def test_without_masks_there_is_no_chart(tmp_path: Any) -> None:
    assert not bars.write(tmp_path / "chart.png", [ranked(["red"], mask=False)], tmp_path)
    assert not (tmp_path / "chart.png").exists()


def described(said: list[str], objects: list[str]) -> tuple[Item, Record]:
    scores = {"mentioned": said, "objects": objects}
    return Item("x", "a.png", (Question("caption"),), {}), {"scores": scores, "answers": texts("")}


def test_chair_counts_mentions_captions_and_objects() -> None:
    scored = [
        described(
            ["dog", "dog", "cat", "cow"], ["dog", "house"]
        ),  # two of four are not there, in one caption
        described(["dog"], ["dog"]),
        described([], ["house"]),
    ]
    assert chair.total(scored) == {
        "chair_i": pytest.approx(2 / 5),
        "chair_s": pytest.approx(1 / 3, abs=1e-6),
        "recall": pytest.approx(2 / 4),
        "captions": 3,
        "mentions": 5,
        "objects": 4,
    }
