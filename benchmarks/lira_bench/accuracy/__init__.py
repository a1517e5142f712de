"""Accuracy of a bundle's engines in the field's own formats and metrics: `lira-edge eval`."""
