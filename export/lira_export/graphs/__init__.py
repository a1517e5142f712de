"""The portable ONNX graphs of the five stages (opset 24, standard operators)."""
