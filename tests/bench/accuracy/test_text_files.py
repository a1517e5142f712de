"""Annotation files of other programs: line ends, byte order marks, impossible numbers."""

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
def test_lines_end_only_at_lf_and_crlf(annotated: Annotated, end: str) -> None:
    # JSON escapes the control characters; U+007F and above it takes as they are
    asked = [f"Is it{character}there?" for character in "\u2028\u2029\u0085\x7f"]
    content = end.join(raw(question(text)) for text in asked) + end + end + "{broken"
    annotated.write("pope.jsonl", content)
    assert texts(annotated) == asked
    assert list(annotated.reasons("pope")) == ["pope.jsonl:6"]


@pytest.mark.parametrize("character", SEPARATORS)
def test_other_line_separators_do_not_split_lines(annotated: Annotated, character: str) -> None:
    lines = [raw(question("One?")), character, raw(question("Two?"))]
    annotated.write("pope.jsonl", "\n".join(lines) + "\n")
    assert texts(annotated) == ["One?", "Two?"] and list(annotated.reasons("pope")) == ["pope.jsonl:2"]
    annotated.write("pope.jsonl", character.join(lines))
    assert texts(annotated) == [] and list(annotated.reasons("pope")) == ["pope.jsonl:1"]


@pytest.mark.parametrize("encoding", MARKS)
def test_byte_order_marks_are_skipped(annotated: Annotated, encoding: str) -> None:
    content = raw(question("Gibt es Käse?")) + "\n" + raw(question("Two?"))
    mark = MARKS[encoding] if encoding == "utf-16-be" else b""  # the others' codecs write it
    written = mark + content.encode(encoding)
    assert written.startswith(MARKS[encoding])
    annotated.write("pope.jsonl", written)
    assert texts(annotated) == ["Gibt es Käse?", "Two?"]
    whole = raw([{"file_name": "ä.jpg", "groundings": {}}])
    annotated.write("gcg.json", mark + whole.encode(encoding))
    assert [item.image for item in annotated.read("gcg").items] == ["ä.jpg"]


def test_byte_order_marks_inside_joined_files_are_skipped(annotated: Annotated) -> None:
    annotated.write("pope.jsonl", "".join(f"\ufeff{raw(question(text))}\r\n" for text in ("One?", "Two?")))
    assert texts(annotated) == ["One?", "Two?"]


@pytest.mark.parametrize("content", [b'\xff\xfe{"a', b"\xfe\xff\x00", b'{"text": "\xe4"}', b"\x80\x81"])
def test_an_undecodable_file_is_a_one_line_error(annotated: Annotated, content: bytes) -> None:
    annotated.write("pope.jsonl", content)
    with pytest.raises(LiraError, match=r"pope\.jsonl cannot be read: .*codec"):
        annotated.read("pope")


@pytest.mark.parametrize(
    "number", ["9" * 400, "-" + "9" * 400, "1e400", "NaN", "-Infinity", "9" * 5000, "1" * 400 + ".5"]
)
def test_impossible_numbers_are_left_out(annotated: Annotated, number: str) -> None:
    for key in ("image", "text", "label"):
        line = raw({**question("Two?"), key: "HERE"}).replace('"HERE"', number)
        annotated.write("pope.jsonl", f"{raw(question('One?'))}\n{line}\n")
        assert texts(annotated) == ["One?"] and len(annotated.reasons("pope")["pope.jsonl:2"]) < 200


def test_a_number_too_long_for_python_is_a_one_line_error(annotated: Annotated) -> None:
    annotated.write("gcg.json", "[" + "9" * 5000 + "]")
    with pytest.raises(LiraError, match=r"gcg\.json is not JSON: Exceeds the limit"):
        annotated.read("gcg")


def test_too_deep_nesting_is_a_one_line_error(annotated: Annotated) -> None:
    for depth in (500, 100_000):
        nested = "[" * depth + "]" * depth
        annotated.write("pope.jsonl", raw(question("One?")).replace('"One?"', nested) + "\n")
        assert list(annotated.reasons("pope")) == ["pope.jsonl:1"]
    annotated.write("gcg.json", nested)
    with pytest.raises(LiraError, match="is not JSON"):
        annotated.read("gcg")


def test_errors_show_short_values() -> None:
    assert short(10**400) == short(-(10**400)) == "a number of 401 digits"
    assert short("a\nb\u2028") == "'a\\nb\\u2028'"
    assert len(short(["x"] * 1000)) == 40
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert short(nested) == "a deeply nested list"
