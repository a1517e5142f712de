"""Bundles, engines and the runners that execute them. Imports none of the other packages.

All other packages import this one before they open a library that would report to its maker.
"""

from __future__ import annotations

from lira_engine import telemetry
from lira_engine.lazy import attributes

TYPE_CHECKING = False  # importing typing takes longer than all else that runs before Ctrl-C is handled
if TYPE_CHECKING:
    from lira_engine.bundle.bundle import Bundle as Bundle
    from lira_engine.bundle.manifest import Manifest as Manifest
    from lira_engine.engines.runner import Engines as Engines
    from lira_engine.engines.runner import KvCache as KvCache
    from lira_engine.engines.runner import LlmOutput as LlmOutput
    from lira_engine.engines.runner import LlmRunner as LlmRunner
    from lira_engine.engines.runner import StageRunner as StageRunner
    from lira_engine.errors import BundleChanged as BundleChanged
    from lira_engine.errors import ContextFull as ContextFull
    from lira_engine.errors import LiraError as LiraError
    from lira_engine.errors import OutOfMemory as OutOfMemory
    from lira_engine.open import open_engines as open_engines
    from lira_engine.version import __version__ as __version__

_HOMES = {
    "Bundle": "bundle.bundle",
    "BundleChanged": "errors",
    "ContextFull": "errors",
    "Engines": "engines.runner",
    "KvCache": "engines.runner",
    "LiraError": "errors",
    "LlmOutput": "engines.runner",
    "LlmRunner": "engines.runner",
    "Manifest": "bundle.manifest",
    "OutOfMemory": "errors",
    "StageRunner": "engines.runner",
    "__version__": "version",
    "open_engines": "open",
}

__all__ = sorted(_HOMES)
__getattr__ = attributes(__name__, _HOMES)
telemetry.turn_off()
