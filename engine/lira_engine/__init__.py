"""Bundles, engines and the runners that execute them. Imports none of the other packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lira_engine.lazy import attributes

if TYPE_CHECKING:
    from lira_engine.bundle import Bundle as Bundle
    from lira_engine.engines import open_engines as open_engines
    from lira_engine.errors import ContextFull as ContextFull
    from lira_engine.errors import LiraError as LiraError
    from lira_engine.errors import OutOfMemory as OutOfMemory
    from lira_engine.manifest import Manifest as Manifest
    from lira_engine.runner import Engines as Engines
    from lira_engine.runner import KvCache as KvCache
    from lira_engine.runner import LlmOutput as LlmOutput
    from lira_engine.runner import LlmRunner as LlmRunner
    from lira_engine.runner import StageRunner as StageRunner
    from lira_engine.version import __version__ as __version__

_HOMES = {
    "Bundle": "bundle",
    "ContextFull": "errors",
    "Engines": "runner",
    "KvCache": "runner",
    "LiraError": "errors",
    "LlmOutput": "runner",
    "LlmRunner": "runner",
    "Manifest": "manifest",
    "OutOfMemory": "errors",
    "StageRunner": "runner",
    "__version__": "version",
    "open_engines": "engines",
}

__all__ = sorted(_HOMES)
__getattr__ = attributes(__name__, _HOMES)
