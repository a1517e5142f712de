"""What the engines' thread owns: the opened bundle, the scenes, the turns."""

from __future__ import annotations

from lira_runtime.lira import Lira
from lira_serve.model_info import ModelInfo
from lira_serve.scenes import SceneCache
from lira_serve.settings import Settings
from lira_serve.turns import TurnMemory


class Desk:
    """An opened bundle with its scenes."""

    def __init__(self, settings: Settings) -> None:
        """Open the engines. Raises LiraError as `Lira.open` does."""
        self.lira = Lira.open(
            settings.bundle,
            settings.target,
            settings.precision,
            settings.threads,
            unverified=settings.unverified,
            draft=settings.draft,
            driver=settings.driver,
        )
        self.scenes = SceneCache(self.lira, settings.scene_cache)
        self.turns = TurnMemory()
        self.info = ModelInfo.of(
            self.lira.manifest, settings.target, settings.precision, self.lira.engines.llm.capacity
        )

    def close(self) -> None:
        """Free the scenes and the engines."""
        self.scenes.clear()
        self.lira.close()
