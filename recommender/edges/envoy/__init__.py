"""Calls through Envoy's HTTP/2, as an ASGI application inside it."""
