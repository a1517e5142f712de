"""What the endpoints share."""

from __future__ import annotations

from dataclasses import dataclass

from lira_serve.asked import Answerer
from lira_serve.body import Bodies
from lira_serve.metrics import Metrics
from lira_serve.model_info import ModelInfo
from lira_serve.picture_source import PictureSource
from lira_serve.settings import Settings


@dataclass(frozen=True)
class Service:
    """The parts of one application."""

    settings: Settings
    answerer: Answerer
    info: ModelInfo
    pictures: PictureSource
    bodies: Bodies
    metrics: Metrics
