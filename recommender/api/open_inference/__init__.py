"""Translate messages of the Open Inference Protocol: tensors to requests, rankings to tensors."""
