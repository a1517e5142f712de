"""Checkpoint to bundle: the only package that needs torch."""
