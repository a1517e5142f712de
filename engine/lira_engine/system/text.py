"""Text from files, names and models: it may not be UTF-8, and it may hold what a terminal obeys.

Python keeps bytes of arguments and names that are not UTF-8 as lone surrogates.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from lira_engine.errors import LiraError

# C0 but tab and line break, DEL, C1, and the marks that reorder a line (CVE-2021-42574).
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """Return `text` for a terminal: what it would obey is escaped as in Python's source, such as `\\x1b`."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def error_line(reason: str) -> str:
    """Return the line that reports an error."""
    return f"error: {shown(' '.join(reason.splitlines()))}"


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
