"""The same application, with replicas of the engines on Ray Serve in place of the engines' thread."""

from __future__ import annotations

import lira_engine  # noqa: F401  # before Ray: it turns usage statistics off
