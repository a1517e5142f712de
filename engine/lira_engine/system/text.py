"""Text that may not be UTF-8: Python keeps such bytes of arguments and names as lone surrogates."""

from __future__ import annotations

import json
from pathlib import Path

from lira_engine.errors import LiraError


def is_utf8(text: str) -> bool:
    """Return whether `text` can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_text(value: object, indent: int | None = 1) -> str:
    """Return JSON that encodes as UTF-8, with a line break at its end. Lone surrogates are escaped: Python
    reads the same text back."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def check_path(path: Path | str) -> None:
    """Raise LiraError if libraries cannot open this path of a bundle or a checkpoint."""
    if not is_utf8(str(path)):
        raise LiraError(
            f"{path} is not UTF-8, which ONNX Runtime and others do not open: rename the folder, or give "
            "another path"
        )
