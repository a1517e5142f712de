"""Names that are not UTF-8, in JSON and in paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lira_engine import Bundle, LiraError
from lira_engine.system.text import check_path, is_utf8, json_text

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
