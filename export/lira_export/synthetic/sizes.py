"""Names of the sizes that `lira-edge synthesize` knows: the published ones, and those of other packages.

A package adds a size with an entry point of the group `lira_edge.presets`: NAME = FUNCTION(), which returns a
:class:`lira_export.synthetic.presets.Preset`.
"""

from __future__ import annotations

from importlib import metadata

GROUP = "lira_edge.presets"
PUBLISHED = ("lira-2b", "lira-8b", "lira-qwen2-1.5b")


def entries() -> dict[str, metadata.EntryPoint]:
    """Return the sizes of other packages, by name."""
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def size_names() -> tuple[str, ...]:
    """Return all sizes, the published ones first."""
    return (*PUBLISHED, *sorted(entries().keys() - set(PUBLISHED)))
