"""CUDA's memory, streams and events, by whichever Python package is there."""
