"""Annotation files as other programs write them: ends of lines, byte order marks, numbers beyond reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lira_bench.accuracy.files import short
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from .conftest import Annotated

# Where str.splitlines ends a line and JSON does not.
SEPARATORS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"
MARKS = {
    "utf-8-sig": b"\xef\xbb\xbf",
    "utf-16": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "utf-32": b"\xff\xfe\0\0",
}


def question(text: str) -> dict[str, Any]:
    return {"image": "a.jpg", "text": text, "label": "yes"}


def raw(entry: object) -> str:
    return json.dumps(entry, ensure_ascii=False)


def texts(annotated: Annotated) -> list[str | None]:
    return [item.questions[0].text for item in annotated.read("pope").items]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_at_lf_and_crlf_alone(annotated: Annotated, end: str) -> None:
    # JSON escapes the control characters; U+007F and above it takes as they are
    asked = [f"Is it{character}there?" for character in "\u2028\u2029\u0085\x7f"]
    content = end.join(raw(question(text)) for text in asked) + end + end + "{broken"
    annotated.write("pope.jsonl", content)
    assert texts(annotated) == asked
    assert list(annotated.reasons("pope")) == ["pope.jsonl:6"]


@pytest.mark.parametrize("character", SEPARATORS)
def test_no_other_character_is_a_line_of_its_own(annotated: Annotated, character: str) -> None:
    lines = [raw(question("One?")), character, raw(question("Two?"))]
    annotated.write("pope.jsonl", "\n".join(lines) + "\n")
    assert texts(annotated) == ["One?", "Two?"] and list(annotated.reasons("pope")) == ["pope.jsonl:2"]
    annotated.write("pope.jsonl", character.join(lines))
    assert texts(annotated) == [] and list(annotated.reasons("pope")) == ["pope.jsonl:1"]


@pytest.mark.parametrize("encoding", MARKS)
def test_byte_order_marks_are_read_over(annotated: Annotated, encoding: str) -> None:
    content = raw(question("Gibt es Käse?")) + "\n" + raw(question("Two?"))
    mark = MARKS[encoding] if encoding == "utf-16-be" else b""  # the others' codecs write it
    written = mark + content.encode(encoding)
    assert written.startswith(MARKS[encoding])
    annotated.write("pope.jsonl", written)
    assert texts(annotated) == ["Gibt es Käse?", "Two?"]
    whole = raw([{"file_name": "ä.jpg", "groundings": {}}])
    annotated.write("gcg.json", mark + whole.encode(encoding))
    assert [item.image for item in annotated.read("gcg").items] == ["ä.jpg"]


def test_joined_files_have_marks_in_the_middle(annotated: Annotated) -> None:
    annotated.write("pope.jsonl", "".join(f"\ufeff{raw(question(text))}\r\n" for text in ("One?", "Two?")))
    assert texts(annotated) == ["One?", "Two?"]


@pytest.mark.parametrize("content", [b'\xff\xfe{"a', b"\xfe\xff\x00", b'{"text": "\xe4"}', b"\x80\x81"])
def test_what_is_no_text_is_one_line(annotated: Annotated, content: bytes) -> None:
    annotated.write("pope.jsonl", content)
    with pytest.raises(LiraError, match=r"pope\.jsonl cannot be read: .*codec"):
        annotated.read("pope")


@pytest.mark.parametrize(
    "number", ["9" * 400, "-" + "9" * 400, "1e400", "NaN", "-Infinity", "9" * 5000, "1" * 400 + ".5"]
)
def test_numbers_beyond_reason_in_lines(annotated: Annotated, number: str) -> None:
    for key in ("image", "text", "label"):
        line = raw({**question("Two?"), key: "HERE"}).replace('"HERE"', number)
        annotated.write("pope.jsonl", f"{raw(question('One?'))}\n{line}\n")
        assert texts(annotated) == ["One?"] and len(annotated.reasons("pope")["pope.jsonl:2"]) < 200


def test_a_number_that_python_does_not_read_is_one_line(annotated: Annotated) -> None:
    annotated.write("gcg.json", "[" + "9" * 5000 + "]")
    with pytest.raises(LiraError, match=r"gcg\.json is not JSON: Exceeds the limit"):
        annotated.read("gcg")


def test_what_is_nested_beyond_reason_is_one_line(annotated: Annotated) -> None:
    for depth in (500, 100_000):
        nested = "[" * depth + "]" * depth
        annotated.write("pope.jsonl", raw(question("One?")).replace('"One?"', nested) + "\n")
        assert list(annotated.reasons("pope")) == ["pope.jsonl:1"]
    annotated.write("gcg.json", nested)
    with pytest.raises(LiraError, match="is not JSON"):
        annotated.read("gcg")


def test_values_in_errors_are_short() -> None:
    assert short(10**400) == short(-(10**400)) == "a number of 401 digits"
    assert short("a\nb\u2028") == "'a\\nb\\u2028'"
    assert len(short(["x"] * 1000)) == 40
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert short(nested) == "a deeply nested list"
