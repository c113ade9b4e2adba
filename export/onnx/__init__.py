"""Making ONNX files that run in integers, and reading them."""
