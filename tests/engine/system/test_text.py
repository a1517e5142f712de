"""Names that are not UTF-8, in JSON and in paths; and what a terminal would obey."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lira_engine import Bundle, LiraError
from lira_engine.system.text import check_path, error_line, is_utf8, json_text, shown

ODD = "caf\udce9 \u6a59 \ud800 \U0001f600"


def test_json_is_utf8_and_reads_back_the_same() -> None:
    text = json_text({ODD: [ODD, 1]})
    assert json.loads(text.encode().decode()) == {ODD: [ODD, 1]}
    assert "\u6a59" in text and "\\udce9" in text and text.endswith("}\n")
    assert json_text([1, 2], indent=None) == "[1, 2]\n"


def test_a_path_that_is_not_utf8_is_refused() -> None:
    assert is_utf8("caf\u00e9 \U0001f600") and not is_utf8(ODD)
    check_path(Path("/caf\u00e9"))
    with pytest.raises(LiraError, match="not UTF-8, which ONNX Runtime and others do not open: rename"):
        check_path("/caf\udce9")


def test_a_bundle_must_be_a_path() -> None:
    with pytest.raises(LiraError, match="the bundle is of type NoneType; expected a path"):
        Bundle.open(None)  # type: ignore[arg-type]


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert shown("a\tb\nc \u6a59 \U0001f600 \\x1b") == "a\tb\nc \u6a59 \U0001f600 \\x1b"
    assert shown("\x1b[31m\x00\x07\r\x7f") == r"\x1b[31m\x00\x07\r\x7f"
    assert shown("\x9b31m \u202e\u2066") == r"\x9b31m \u202e\u2066"
    kept = [code for code in range(0xA0) if shown(chr(code)) == chr(code)]
    assert kept == [9, 10, *range(32, 127)]
    assert error_line("a\x85b\r\nc\x1b") == r"error: a b c\x1b"
