"""Measurements: tokens per second, latency and accuracy, beside published figures and peers."""
