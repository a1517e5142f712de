"""Leaks to plant: a soak that cannot find these has shown nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from lira_runtime.answer import Event
from lira_runtime.events import MaskEvent
from lira_runtime.scene import Scene

LEAKS = ("arrays", "descriptor", "thread")


def plant(leaks: Collection[str]) -> None:
    """Let each answer of this process leave its masks, an open file or a waiting thread behind."""
    ask, kept = Scene.stream_prompt, list[np.ndarray]()

    def leave_behind() -> None:
        if "descriptor" in leaks:
            os.open(os.devnull, os.O_RDONLY)
        if "thread" in leaks:
            threading.Thread(target=threading.Event().wait, daemon=True).start()

    def watched(events: Iterator[Event]) -> Iterator[Event]:
        leave_behind()
        for event in events:
            if "arrays" in leaks and isinstance(event, MaskEvent):
                kept.append(event.mask.logits)
            yield event

    def leaking(scene: Scene, *arguments: Any, **options: Any) -> Iterator[Event]:
        return watched(ask(scene, *arguments, **options))

    assert set(leaks) <= set(LEAKS)
    Scene.stream_prompt = leaking  # type: ignore[method-assign]
