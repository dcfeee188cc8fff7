"""Run one ONNX file: sessions, devices, tensors."""
