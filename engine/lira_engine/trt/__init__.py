"""Engines by NVIDIA TensorRT (Jetson, data centre) and TensorRT for RTX: building and running them."""
