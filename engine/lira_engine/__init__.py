"""Bundles, engines and the runners that execute them. Imports none of the other packages."""

from importlib import metadata

from lira_engine.bundle import Bundle
from lira_engine.engines import open_engines
from lira_engine.errors import ContextFull, LiraError
from lira_engine.manifest import Manifest
from lira_engine.runner import Engines, KvCache, LlmOutput, LlmRunner, StageRunner

__version__ = metadata.version("lira-edge")

__all__ = [
    "Bundle",
    "ContextFull",
    "Engines",
    "KvCache",
    "LiraError",
    "LlmOutput",
    "LlmRunner",
    "Manifest",
    "StageRunner",
    "__version__",
    "open_engines",
]
