"""TensorRT's error messages, kept for our own."""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any

from lira_engine.trt.flavour import Flavour


class ErrorLog:
    """TensorRT gets `logger`. Its class is made at run time: its base is the installed package's."""

    def __init__(self, flavour: Flavour) -> None:
        trt, errors = flavour.module, deque[str](maxlen=2)

        class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(" ".join(text.split()))

        self._errors = errors
        self.logger = Logger()

    def clear(self) -> None:
        """Forget the errors so far."""
        self._errors.clear()

    def reason(self) -> str:
        """Return the last errors in one line, and forget them."""
        found = "; ".join(self._errors)[:500]
        self.clear()
        return found or "it does not say why"


@cache
def error_log(flavour: Flavour) -> ErrorLog:
    """Return the only log of this process, never freed. TensorRT keeps the first logger that it gets, and
    warns of another one while it holds a lock: if a second thread closes an engine then, the two deadlock on
    that lock and Python's (seen with TensorRT for RTX 1.7)."""
    return ErrorLog(flavour)
