"""Spans of calls, if the caller's program traces."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


def _instrumentation(instrumentor: str) -> tuple[ModuleType, TracerProvider] | None:
    """GRPC's instrumentation if a tracer provider is set, and not all of gRPC is instrumented anyway."""
    if "opentelemetry.trace" not in sys.modules:  # else it would be imported for nothing
        return None
    from opentelemetry import trace  # noqa: PLC0415

    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        return None
    from opentelemetry.instrumentation import grpc as instrumentation  # noqa: PLC0415 (slow to import)

    if getattr(instrumentation, instrumentor)().is_instrumented_by_opentelemetry:
        return None
    from recommender.observability.client_spans import StableNames  # noqa: PLC0415 (imports the API)

    return instrumentation, StableNames(provider)


def aio_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """Interceptors for an asynchronous channel; none if nothing traces."""
    found = _instrumentation("GrpcAioInstrumentorClient")
    if found is None:
        return ()
    instrumentation, provider = found
    made: Sequence[grpc.aio.ClientInterceptor] = instrumentation.aio_client_interceptors(provider)
    return made


def traced(channel: grpc.Channel) -> grpc.Channel:
    """The channel, with spans for its calls if the program traces."""
    found = _instrumentation("GrpcInstrumentorClient")
    if found is None:
        return channel
    instrumentation, provider = found
    made: grpc.Channel = instrumentation.intercept_channel(channel, instrumentation.client_interceptor(provider))
    return made
