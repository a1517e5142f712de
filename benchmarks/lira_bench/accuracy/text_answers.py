"""Compare free text with true answers: VQA's soft accuracy and POPE's yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = frozenset(
    re.findall(
        r"\S+",
        """
        ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd how'd how'll
        isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't
        should've shouldn't somebody'll someone'd someone'll something'd something'll there'd there're they'd
        they'll they're they've 'twas wasn't we've weren't what'll what're what've when've where'd where've
        who'd who'll who've why'll why're won't would've wouldn't y'all you'd you'll you're you've
        """,
    )
)
_ANNOTATORS = 10  # per question, in the data sets that leave one out


def normalised(answer: str) -> str:
    """Normalise an answer as VQA's evaluation: lower case, no punctuation or articles, numbers as digits.

    A sign is removed if the text has it next to a blank (or has a comma between digits), else it becomes a
    blank; a full stop stays in front of a digit. Source: the rules of VQA's evaluation code (visualqa.org).
    In place of its table of contractions, apostrophes are removed, so "dont" equals "don't".
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
    """Return VQA's accuracy of one answer.

    One or two true answers are alternatives: 1.0 for any of them. Three or more are annotators: min(n / 3, 1)
    for an answer that n of them gave. With ten (VQAv2, OK-VQA, VizWiz, TextVQA) this is averaged over the ten
    ways to leave one out, as the evaluation code of these data sets does.
    """
    given = normalised(answer)
    agreeing = sum(normalised(other) == given for other in truth)
    if len(truth) < 3:
        return float(agreeing > 0)
    if len(truth) < _ANNOTATORS:
        return min(agreeing / 3, 1.0)
    return _leaving_one_out(agreeing, len(truth))


def _leaving_one_out(agreeing: int, of: int = _ANNOTATORS) -> float:
    """Return the mean of min(n / 3, 1) over leaving each annotator out, with n of the others agreeing."""
    without_one = agreeing * min((agreeing - 1) / 3, 1.0)
    without_another = (of - agreeing) * min(agreeing / 3, 1.0)
    return (without_one + without_another) / of


def authors_accuracy(answer: str, truth: Sequence[str], *, of_gqa: bool = False) -> float:
    """Return the accuracy by the authors' evaluate_vqa.py: with ten true answers by TextVQA's rules, else 1.0
    for an answer that is equal but for case and outer blanks. `of_gqa`: shorten the answer first."""
    if len(truth) == _ANNOTATORS:
        given = textvqa_normalised(answer)
        return _leaving_one_out(sum(textvqa_normalised(other) == given for other in truth))
    given = gqa_shortened(answer) if of_gqa else answer.strip().lower()
    return float(any(given == other.strip().lower() for other in truth))


def textvqa_normalised(answer: str) -> str:
    """Normalise an answer as TextVQA's evaluation does.

    Unlike `normalised`, it removes commas and question marks first, makes a possessive s a word, and removes
    apostrophes of contractions only (those with one apostrophe). Source: the rules of m4c_evaluator.py (MMF),
    which upstream has as internvl/eval/vqa/textvqa_eval.py.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ")
    stripped = text
    for sign in _SIGNS:
        beside_blank = f"{sign} " in text or f" {sign}" in text
        stripped = stripped.replace(sign, "" if beside_blank else " ")
    words = (_NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", stripped).split())
    kept = (word for word in words if word not in _ARTICLES)
    return " ".join(word.replace("'", "") if word in _CONTRACTIONS else word for word in kept)


def gqa_shortened(answer: str) -> str:
    """Return what follows "is", "are" and an article in the first clause, up to " of"."""
    text = re.split("[.,!]", answer.strip())[0].lower()
    for word in ("is ", "are ", "a ", "an ", "the "):
        if word in text:
            text = text.split(word)[1]
    return text.split(" of")[0].strip()


def pope_says_yes(answer: str, *, blanks_only: bool = False) -> bool:
    """Return False if the first sentence has the word no, No or not, else True, as POPE does.
    `blanks_only`: words end at blanks only, as in POPE's script, and not at line breaks."""
    words = answer.split(".")[0].replace(",", "").split(" " if blanks_only else None)
    return not {"No", "no", "not"} & set(words)
