"""What TensorRT complains about, kept for our own error messages."""

from __future__ import annotations

from typing import Any

from lira_engine.trt.flavour import Flavour


class ErrorLog:
    """`logger` is given to TensorRT. Its class is made at run time: the base is the installed one."""

    def __init__(self, flavour: Flavour) -> None:
        trt, errors = flavour.module, []

        class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(" ".join(text.split()))

        self.errors: list[str] = errors
        self.logger = Logger()

    def reason(self) -> str:
        """The last complaints, in one line."""
        return "; ".join(self.errors[-2:])[:500] or "it does not say why"
