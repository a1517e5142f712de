"""Figures as texts: rates beside the authors', three significant digits, memory."""

from __future__ import annotations

from lira_bench.plan.memory import GIB
from lira_runtime.timings import AUTHORS_TOKENS_PER_SECOND

AUTHORS = f"{AUTHORS_TOKENS_PER_SECOND:g}"


def beside(rate: float) -> str:
    """Return a rate with its ratio to the authors' rate."""
    ratio = rate / AUTHORS_TOKENS_PER_SECOND
    return f"{figure(rate)} ({ratio:.0f}x)" if ratio >= 10 else f"{figure(rate)} ({ratio:.2g}x)"


def some(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def figure(value: float) -> str:
    """Return three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.5f}".rstrip("0") if "e" in text else text


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
