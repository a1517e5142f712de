"""Predict whether a model fits a device and how fast it is there, from graphs and figures."""
