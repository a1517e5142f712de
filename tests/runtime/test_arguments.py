"""Values of the wrong kind in the public API raise LiraError with one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lira_engine.errors import LiraError
from lira_runtime import arguments
from lira_runtime.sampling import make_sampler


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_become_int(value: object) -> None:
    found = arguments.whole("n", value, "1 or more", 1)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [2.5, 3.0, True, "3", None, [3], np.array([1, 2]), 0, -(10**400)])
def test_other_values_than_whole_numbers_are_refused(value: object) -> None:
    with pytest.raises(LiraError, match="expected 1 or more") as caught:
        arguments.whole("n", value, "1 or more", 1)
    assert str(caught.value).startswith("n is ") and len(str(caught.value)) < 100


@pytest.mark.parametrize("value", ["1", None, True, 1j, [1.0], 10**400])
def test_other_values_than_numbers_are_refused(value: object) -> None:
    with pytest.raises(LiraError, match=r"^t is .*; expected a number$"):
        arguments.real("t", value, "a number")


@pytest.mark.parametrize(
    ("value", "shown"), [(5, "5"), (None, "None"), (b"a", "b'a'"), (["a"], "of type list")]
)
def test_other_types_than_text_are_refused(value: object, shown: str) -> None:
    with pytest.raises(LiraError) as caught:
        arguments.text("the question", value)
    assert str(caught.value) == f"the question is {shown}; expected text"


@pytest.mark.parametrize("value", ["caf\udce9", "\ud800", "a" * 500 + "\udcff"])
def test_text_that_is_not_utf8_is_refused(value: str) -> None:
    with pytest.raises(LiraError, match="which is not UTF-8; expected text in UTF-8") as caught:
        arguments.text("the question", value)
    assert str(caught.value).isascii() and len(str(caught.value)) < 150
    assert arguments.text("the question", "caf\u00e9 \U0001f600") == "caf\u00e9 \U0001f600"


@pytest.mark.parametrize("value", ["red", 5, None, [1], ["red", b"blue"], ["\udce9"]])
def test_other_types_than_sequences_of_texts_are_refused(value: object) -> None:
    with pytest.raises(LiraError, match="words"):
        arguments.words("words", value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "a"},
        {"temperature": None},
        {"temperature": float("nan")},
        {"temperature": True},
        {"top_p": "1"},
        {"top_p": float("nan")},
        {"top_k": 2.5},
        {"top_k": True},
        {"seed": -1},
        {"seed": 2.5},
        {"seed": "7"},
    ],
)
def test_wrong_values_of_a_sampler_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(LiraError, match=f"^{name} is .*; expected "):
        make_sampler(**wrong)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-320, 5e-324, 1e-200, np.float32(1e-30)])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = np.array([0.25, -3.0, 0.25 + 1e-6, 1e-30, -1e30], np.float32)
    choose = make_sampler(temperature, seed=0, banned=(4,))
    assert {choose(logits) for _ in range(20)} == {2}


@pytest.mark.filterwarnings("error")
def test_equal_logits_are_equally_likely_at_any_temperature() -> None:
    choose = make_sampler(1e-320, seed=0)
    assert {choose(np.array([2.0, 2.0, 1.0], np.float32)) for _ in range(40)} == {0, 1}
