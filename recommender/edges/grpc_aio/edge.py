"""RPCs through grpc.aio: bytes and deadlines in, replies and statuses out.

Handlers take and give bytes. grpc.aio would answer UNKNOWN with a Python error to a message that it cannot decode.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2

from recommender.api.metadata import REQUEST_ID_KEY
from recommender.api.status import FailedCall
from recommender.edges.grpc_aio.spans import Context, Serve, ServerSpans
from recommender.edges.method import Enter, Messages, Method, Streaming, Unary
from recommender.security.access import authorization_of

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

M = TypeVar("M", bytes, AsyncIterator[bytes])
Respond: TypeAlias = Callable[[M, Context, str], Awaitable[Message | None]]
"""Takes a message or a stream of them, and the request id; returns the reply, or None after those of a stream."""


def add_methods(server: grpc.aio.Server, methods: Iterable[Method], spans: ServerSpans | None = None) -> None:
    """Answer calls of these methods on a server; sampled ones within `spans`."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
    for method in methods:
        _, service, name = method.path.split("/")
        services.setdefault(service, {})[name] = _handler_of(method, spans if method.traced else None)
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, handlers) for service, handlers in services.items())
    )


def _handler_of(method: Method, spans: ServerSpans | None) -> grpc.RpcMethodHandler[bytes, bytes]:
    if isinstance(method, Unary):
        return grpc.unary_unary_rpc_method_handler(_handler(method, _unary(method), spans))
    handle = _handler(method, _streaming(method), spans)

    async def replies(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        # The context takes the replies. But interceptors of others want a generator, as grpc.aio's own may be.
        await handle(messages, context)
        for reply in tuple[bytes, ...]():
            yield reply

    return grpc.stream_stream_rpc_method_handler(replies)


def _handler(
    method: Method, respond: Respond[M], spans: ServerSpans | None
) -> Callable[[M, Context], Coroutine[Any, Any, bytes | None]]:
    """Wrap a method into what every call has: its id, its token, its span, its status."""
    begin = method.begin
    if method.enter is not None:
        respond = _guarded(method.enter, respond)

    async def serve(message: M, context: Context) -> bytes | FailedCall | None:
        call = begin(context.invocation_metadata() or ())
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        try:
            reply = await respond(message, context, call.request_id)
            sent = None if reply is None else reply.SerializeToString()
        except grpc.aio.InternalError as error:  # a reply could not be sent: the caller has left
            call.end(_cancelled(context))
            raise asyncio.CancelledError from error
        except Exception as error:  # noqa: BLE001 (whatever went wrong, the caller gets a status)
            return call.fail(error)
        except asyncio.CancelledError:
            call.end(_cancelled(context))
            raise
        call.end(code_pb2.OK)
        return sent

    answer: Serve[M, bytes | FailedCall | None] = serve
    if spans is not None:
        answer = spans.around(method.path[1:], serve)

    async def handle(message: M, context: Context) -> bytes | None:
        outcome = await answer(message, context)
        if isinstance(outcome, FailedCall):
            await context.abort(_GRPC_CODES[outcome.code], outcome.message, outcome.metadata)
        return outcome

    return handle


def _guarded(enter: Enter, respond: Respond[M]) -> Respond[M]:
    async def after_a_look(message: M, context: Context, request_id: str) -> Message | None:
        with enter(authorization_of(context.invocation_metadata() or ())):
            return await respond(message, context, request_id)

    return after_a_look


def _unary(method: Unary) -> Respond[bytes]:
    answer, timeout = method.answer, method.timeout

    def respond(message: bytes, context: Context, request_id: str) -> Awaitable[Message]:
        # The stubs of grpc say `float`; without a deadline it is None.
        remaining: float | None = context.time_remaining()
        return answer(message, time.monotonic() + (timeout if remaining is None else remaining), request_id)

    return respond


def _streaming(method: Streaming) -> Respond[AsyncIterator[bytes]]:
    def respond(_: AsyncIterator[bytes], context: Context, _request_id: str) -> Awaitable[None]:
        async def messages() -> Messages:
            while isinstance(message := await context.read(), bytes):  # else it is the end
                yield message

        async def send(reply: Message) -> None:
            await context.write(reply.SerializeToString())

        return method.serve(messages(), send)

    return respond


def _cancelled(context: Context) -> int:
    """Return the status of a call that gRPC cancelled: its deadline passed, or its caller left."""
    remaining: float | None = context.time_remaining()
    late = remaining is not None and remaining <= 0
    return int(code_pb2.DEADLINE_EXCEEDED if late else code_pb2.CANCELLED)
