"""Calls through grpc.aio."""
