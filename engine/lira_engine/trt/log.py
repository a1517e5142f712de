"""What TensorRT complains about, kept for our own error messages."""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any

from lira_engine.trt.flavour import Flavour


class ErrorLog:
    """`logger` is given to TensorRT. Its class is made at run time: the base is the installed one."""

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
        """Forget what was said: something else begins."""
        self._errors.clear()

    def reason(self) -> str:
        """The last complaints, in one line; they are forgotten."""
        found = "; ".join(self._errors)[:500]
        self.clear()
        return found or "it does not say why"


@cache
def error_log(flavour: Flavour) -> ErrorLog:
    """The one of this process, which lasts as long. TensorRT keeps the first logger that it is given. Of
    another one it warns, holding a lock; when another thread closes an engine meanwhile, the two wait for
    that lock and for Python's for ever (seen with TensorRT for RTX 1.7)."""
    return ErrorLog(flavour)
