"""Thousands of questions to one process: it must not grow. See docs/trust.md, "Soaked"."""
