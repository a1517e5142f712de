"""Engines that ONNX Runtime runs, on the CPU and on NVIDIA GPUs."""
