"""ONNX files that other exporters wrote: what they are, and the same with our inputs and outputs."""
