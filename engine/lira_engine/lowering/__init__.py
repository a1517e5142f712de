"""Portable graph to a target's graph: pipelines of passes."""
