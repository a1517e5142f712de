"""Image and question in, text, masks and events out. Needs neither torch nor transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lira_engine.lazy import attributes

if TYPE_CHECKING:
    from lira_runtime.answer import Answer as Answer
    from lira_runtime.answer import Event as Event
    from lira_runtime.answer import FinishedEvent as FinishedEvent
    from lira_runtime.answer import Phrase as Phrase
    from lira_runtime.answer import PhraseEvent as PhraseEvent
    from lira_runtime.events import MaskEvent as MaskEvent
    from lira_runtime.events import RegionEvent as RegionEvent
    from lira_runtime.events import TokenEvent as TokenEvent
    from lira_runtime.lira import Lira as Lira
    from lira_runtime.masks import Mask as Mask
    from lira_runtime.prompts import Question as Question
    from lira_runtime.scene import Scene as Scene
    from lira_runtime.timings import Timings as Timings
    from lira_runtime.turns import Region as Region
    from lira_runtime.turns import Turn as Turn

_HOMES = {
    "Answer": "answer",
    "Phrase": "answer",
    "PhraseEvent": "answer",
    "Event": "answer",
    "FinishedEvent": "answer",
    "MaskEvent": "events",
    "RegionEvent": "events",
    "TokenEvent": "events",
    "Mask": "masks",
    "Lira": "lira",
    "Question": "prompts",
    "Scene": "scene",
    "Timings": "timings",
    "Region": "turns",
    "Turn": "turns",
}

__all__ = sorted(_HOMES)
__getattr__ = attributes(__name__, _HOMES)
