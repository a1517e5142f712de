"""Bundles, engines and the runners that execute them. Imports none of the other packages."""

from lira_engine.errors import ContextFull, LiraError
from lira_engine.manifest import Manifest

__version__ = "0.1.0"

__all__ = ["ContextFull", "LiraError", "Manifest", "__version__"]
