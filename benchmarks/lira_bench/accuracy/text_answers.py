"""Free text beside the true answers: VQA's soft accuracy and POPE's yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_ANNOTATORS = 10  # per question, in the data sets that leave one out


def normalised(answer: str) -> str:
    """An answer as VQA's evaluation compares it: lower case, no punctuation, no articles, numbers as digits.

    A sign goes where the text has it next to a blank (or has a comma between digits), else it becomes a
    blank; a full stop stays in front of a digit. Source: the rules of VQA's evaluation code (visualqa.org).
    Instead of its table of contractions, apostrophes go: "dont" is "don't" here, too.
    """
    text = " ".join(answer.split())
    thousands = re.search(r"\d,\d", text) is not None
    stripped = text
    for sign in _SIGNS:
        beside_blank = f"{sign} " in text or f" {sign}" in text
        stripped = stripped.replace(sign, "" if beside_blank or thousands else " ")
    stripped = re.sub(r"\.(?!\d)", "", stripped).replace("'", "").lower()
    words = (_NUMBERS.get(word, word) for word in stripped.split())
    return " ".join(word for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, truth: Sequence[str]) -> float:
    """VQA's accuracy of one answer.

    One or two true answers are alternatives: 1.0 for any of them. Three or more are annotators: min(n / 3, 1)
    for an answer that n of them gave. With ten of them (VQAv2, OK-VQA, VizWiz, TextVQA) that is averaged over
    the ten ways to leave one out, as the evaluation code of these data sets does.
    """
    given = normalised(answer)
    agreeing = sum(normalised(other) == given for other in truth)
    if len(truth) < 3:
        return float(agreeing > 0)
    if len(truth) < _ANNOTATORS:
        return min(agreeing / 3, 1.0)
    without_one = agreeing * min((agreeing - 1) / 3, 1.0)
    without_another = (len(truth) - agreeing) * min(agreeing / 3, 1.0)
    return (without_one + without_another) / len(truth)


def pope_says_yes(answer: str) -> bool:
    """POPE's reading: no if the first sentence has the word no, No or not; everything else is yes."""
    words = answer.split(".")[0].replace(",", "").split()
    return not {"No", "no", "not"} & set(words)
