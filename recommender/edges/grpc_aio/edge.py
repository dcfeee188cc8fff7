"""RPCs through grpc.aio: bytes and deadlines in, replies and statuses out.

Handlers take and give bytes. grpc.aio would answer UNKNOWN with a Python error to a message that it cannot decode.
To gRPC unary methods are `stream_unary`: only so are they called with the headers, and read the message themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2

from recommender.api.metadata import REQUEST_ID_KEY
from recommender.api.status import FailedCall
from recommender.edges.grpc_aio.calls import OpenCalls
from recommender.edges.grpc_aio.spans import Context, ServerSpans
from recommender.edges.held import LARGE_BYTES
from recommender.edges.method import ANY_OTHER, Enter, Messages, Method, Streaming, Unary
from recommender.security.access import authorization_of

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

F = TypeVar("F")

Respond: TypeAlias = Callable[[Context, float, str], Awaitable[Message | None]]
"""Takes a deadline and the request id; returns the reply, or None after those of a stream."""


class GrpcCaller:
    """The caller of a call."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def authorization(self) -> str | None:
        """The caller's `authorization`; None if absent."""
        return authorization_of(self._context.invocation_metadata() or ())

    @property
    def connection(self) -> str:
        """Names the caller's connection."""
        return self._context.peer()


def add_methods(
    server: grpc.aio.Server, methods: Iterable[Method], calls: OpenCalls, spans: ServerSpans | None = None
) -> None:
    """Answer calls of these methods on a server; sampled ones within `spans`."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
    others: list[grpc.GenericRpcHandler] = []
    for method in methods:
        handler = _handler_of(method, calls, spans if method.traced else None)
        if method.path == ANY_OTHER:
            others.append(_Others(handler))
        else:
            _, service, name = method.path.split("/")
            services.setdefault(service, {})[name] = handler
    known = [grpc.method_handlers_generic_handler(service, handlers) for service, handlers in services.items()]
    server.add_generic_rpc_handlers((*known, *others))


class _Others(grpc.GenericRpcHandler):
    """Answers every call; the last of several handlers, for methods that no other handler has."""

    def __init__(self, handler: grpc.RpcMethodHandler[bytes, bytes]) -> None:
        self._handler = handler

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return self._handler


def _handler_of(method: Method, calls: OpenCalls, spans: ServerSpans | None) -> grpc.RpcMethodHandler[bytes, bytes]:
    handle = _handler(method, calls, spans)
    if isinstance(method, Unary):
        return grpc.stream_unary_rpc_method_handler(handle)

    async def replies(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        # Replies go through the context. Interceptors, such as OpenTelemetry's, take only a generator of them.
        await handle(messages, context)
        for reply in tuple[bytes, ...]():
            yield reply

    return grpc.stream_stream_rpc_method_handler(replies)


def _handler(
    method: Method, calls: OpenCalls, spans: ServerSpans | None
) -> Callable[[AsyncIterator[bytes], Context], Coroutine[Any, Any, bytes | None]]:
    """Wrap a method into what every call has: its id, its token, its span, its status."""
    if spans is None:
        return _serving(method, calls, _abort)
    traced = spans.around(method.path[1:], _serving(method, calls, _kept))

    async def handle(messages: AsyncIterator[bytes], context: Context) -> bytes | None:
        outcome = await traced(messages, context)
        return await _abort(context, outcome) if isinstance(outcome, FailedCall) else outcome

    return handle


def _serving(  # noqa: C901 (one coroutine: each costs all that is resumed through it)
    method: Method, calls: OpenCalls, fail: Callable[[Context, FailedCall], Awaitable[F]]
) -> Callable[[AsyncIterator[bytes], Context], Coroutine[Any, Any, bytes | F | None]]:
    """Serve a method; `fail` ends calls that failed."""
    begin, timeout, largest, respond = method.begin, method.timeout, method.largest, _respond(method, calls)
    answer = _answering(method, calls) if isinstance(method, Unary) and method.enter is None else None

    async def serve(_: AsyncIterator[bytes], context: Context) -> bytes | F | None:
        call = begin(context.invocation_metadata() or ())
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        # grpc's stubs say `float`; without a deadline it is None.
        remaining: float | None = context.time_remaining()
        now = time.monotonic()
        deadline = now + (timeout if remaining is None else remaining)
        failed: FailedCall | None = None
        sent: bytes | None = None
        try:
            calls.begin(context)
            if answer is None:
                reply = await respond(context, deadline, call.request_id)
            else:  # as `_unary` does
                calls.expect(context, now, deadline)
                message: object = await context.read()
                if not isinstance(message, bytes):
                    message = await calls.missing()
                calls.received(context, message, largest)
                reply = await answer(context, message, deadline, call.request_id)
            if reply is not None:
                sent = reply.SerializeToString()
                if len(sent) > LARGE_BYTES:
                    calls.hold(context, len(sent))
        except grpc.aio.InternalError as error:  # a reply could not be sent: the caller has left
            call.end(_cancelled(context))
            raise asyncio.CancelledError from error
        except Exception as error:  # noqa: BLE001 (any error must end in a status)
            failed = call.fail(error)
        except asyncio.CancelledError:
            refused = calls.refusal_of(context)
            if refused is None:
                call.end(_cancelled(context))
                raise
            failed = call.fail(refused)
        calls.leave(context, deadline)
        if failed is None:
            call.end(code_pb2.OK)
            return sent
        return await fail(context, failed)

    return serve


async def _abort(context: Context, failed: FailedCall) -> NoReturn:
    await context.abort(_GRPC_CODES[failed.code], failed.message, failed.metadata)


async def _kept(_: Context, failed: FailedCall) -> FailedCall:
    """Leave the end to the reader of the outcome: an interceptor would record an abort as an exception."""
    return failed


def _respond(method: Method, calls: OpenCalls) -> Respond:
    respond = _streaming(method, calls) if isinstance(method, Streaming) else _unary(method, calls)
    return respond if method.enter is None else _guarded(method.enter, respond)


def _guarded(enter: Enter, respond: Respond) -> Respond:
    async def after_a_look(context: Context, deadline: float, request_id: str) -> Message | None:
        with enter(GrpcCaller(context)):
            return await respond(context, deadline, request_id)

    return after_a_look


def _unary(method: Unary, calls: OpenCalls) -> Respond:
    answer, largest = _answering(method, calls), method.largest

    async def respond(context: Context, deadline: float, request_id: str) -> Message:
        message = await calls.read(context, deadline, largest)
        return await answer(context, message, deadline, request_id)

    return respond


def _answering(method: Unary, calls: OpenCalls) -> Callable[[Context, bytes, float, str], Awaitable[Message]]:
    """Answer messages, of which large ones are held meanwhile."""
    answer = method.answer

    def answered(context: Context, message: bytes, deadline: float, request_id: str) -> Awaitable[Message]:
        if len(message) <= LARGE_BYTES:
            return answer(message, deadline, request_id)
        return held(context, message, deadline, request_id)

    async def held(context: Context, message: bytes, deadline: float, request_id: str) -> Message:
        with calls.held.holding(context.peer(), len(message)):
            return await answer(message, deadline, request_id)

    return answered


def _streaming(method: Streaming, calls: OpenCalls) -> Respond:
    serve, asked_once = method.serve, method.asked_once

    async def respond(context: Context, deadline: float, _request_id: str) -> None:
        unread = 0

        async def messages() -> Messages:
            if asked_once:
                yield await calls.read(context, deadline, method.largest)
            while isinstance(message := await context.read(), bytes):  # else it is the end
                yield message

        async def send(*replies: Message) -> None:
            nonlocal unread
            for reply in replies:
                unread += 1
                await context.write(reply.SerializeToString())
                unread -= 1

        await serve(messages(), send)
        if unread:  # the caller does not read, and gRPC would send it the status after what it does not read
            calls.cut(context)

    return respond


def _cancelled(context: Context) -> int:
    """Return the status of a call that gRPC cancelled: its deadline passed, or its caller left."""
    remaining: float | None = context.time_remaining()
    late = remaining is not None and remaining <= 0
    return int(code_pb2.DEADLINE_EXCEEDED if late else code_pb2.CANCELLED)
