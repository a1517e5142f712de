"""Text that may not be UTF-8: Python keeps such bytes of arguments and names as lone surrogates."""

from __future__ import annotations

import json
from pathlib import Path

from lira_engine.errors import LiraError


def is_utf8(text: str) -> bool:
    """Whether `text` can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_text(value: object, indent: int | None = 1) -> str:
    """JSON that can be written as UTF-8, with a line break at its end. Lone surrogates are escaped, so that
    whoever reads it in Python has the same name again."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def check_path(path: Path | str) -> None:
    """Raise LiraError for the path of a bundle or a checkpoint that the libraries cannot open."""
    if not is_utf8(str(path)):
        raise LiraError(
            f"{path} is not UTF-8, which ONNX Runtime and others do not open: rename the folder, or give "
            "another path"
        )
