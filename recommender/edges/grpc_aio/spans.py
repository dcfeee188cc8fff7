"""SERVER spans of sampled calls, by gRPC's stock interceptor. A call that is not sampled never enters it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc

from recommender.edges.calls import CallSampler

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
M = TypeVar("M")
R = TypeVar("R")
Serve: TypeAlias = Callable[[M, Context], Awaitable[R]]
"""Takes a message or a stream of them; streams are answered through the context."""


@dataclass(slots=True)
class _Details:
    """`grpc.HandlerCallDetails` of every call of a method, for the name of its spans."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


class ServerSpans:
    """Puts the stock interceptor around methods, for the calls that `sampler` takes."""

    def __init__(self, sampler: CallSampler) -> None:
        from opentelemetry.instrumentation.grpc import aio_server_interceptor  # noqa: PLC0415 (slow to import)

        self._samples = sampler.samples
        make: Callable[[TracerProvider], grpc.aio.ServerInterceptor] = aio_server_interceptor
        self._interceptor = make(sampler.provider)

    def around(self, method: str, serve: Serve[M, R]) -> Serve[M, R]:
        """Serve a method, named without a leading slash, and sampled calls within a span.

        `serve` raises nothing but CancelledError: the interceptor would note each abort as an exception, twice.
        """

        async def handler(_: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401 (a handler that is not for a server)
            # Streams too: for a stream of replies the interceptor wants a generator.
            return grpc.unary_unary_rpc_method_handler(serve)

        traced: Serve[M, R] = _finished(self._interceptor.intercept_service(handler, _Details(method))).unary_unary
        samples = self._samples

        def gated(message: M, context: Context) -> Awaitable[R]:
            sampled = samples(method, context.invocation_metadata() or ())
            return (traced if sampled else serve)(message, context)

        return gated


def _finished(coroutine: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 (as the coroutine)
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    coroutine.close()
    raise TypeError("the interceptor waits for something while it wraps a method")
