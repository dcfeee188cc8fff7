"""RPCs over ASGI: requests and deadlines in, replies and statuses out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection
from typing import TypeAlias

from google.rpc import code_pb2

from recommender.api.metadata import SERVICE_NAME
from recommender.edges.envoy.asgi import Client, Headers, HttpCaller, Receive, Scope, Send, connection_of
from recommender.edges.envoy.call import (
    GRPC,
    HttpCall,
    LeftError,
)
from recommender.edges.envoy.calls import OpenCalls
from recommender.edges.envoy.framing import check_headers, timeout_of
from recommender.edges.held import LARGE_BYTES, Held
from recommender.edges.method import ANY_OTHER, Enter, Method, Streaming, Unary
from recommender.edges.methods import Methods
from recommender.edges.sockets import cut, peer_of
from recommender.edges.uploads import MESSAGE_SECONDS
from recommender.errors import QuotaError

_NO_GRPC = (415, b"text/plain", b"gRPC is spoken here: POST with content-type application/grpc, over HTTP/2\n")

_STREAM_LOOK_SECONDS = 10.0
"""A stream that waits for nothing but news ends at most this long after its caller has left."""

Respond: TypeAlias = Callable[[HttpCall], Awaitable[bytes | None]]
"""Returns the reply to a call, or None after those of a stream."""


class AsgiEdge:
    """Answers calls of `methods` over ASGI.

    `max_message_bytes` bounds each message of a request, `max_metadata_bytes` its headers as gRPC counts them.
    With `web` what is neither gRPC nor turned into it gets 404 with the methods there are, unless reflection is off.
    """

    def __init__(self, methods: Methods, *, max_message_bytes: int, max_metadata_bytes: int, web: bool = False) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_metadata_bytes = max_metadata_bytes
        self._held = Held()
        self._keys = tuple((key.encode(), key) for key in methods.keys)
        self._methods: dict[str, tuple[Method, Respond]] = {
            method.path: (method, self._respond(method)) for method in methods
        }
        self._other = self._methods[ANY_OTHER]
        self._not_grpc = (404, b"application/json", _no_method(self._methods)) if web else _NO_GRPC
        self._calls = OpenCalls(max_message_bytes)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def calls(self) -> int:
        """How many calls are open."""
        return len(self._calls)

    async def __call__(  # noqa: C901, PLR0912 (one coroutine: each costs all that is resumed through it)
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one HTTP request."""
        headers = dict(scope["headers"])
        if scope["method"] != "POST" or not _is_grpc(headers.get(b"content-type", b"")):
            status, content_type, body = self._not_grpc
            headers_sent = [(b"content-type", content_type)]
            await send({"type": "http.response.start", "status": status, "headers": headers_sent})
            await send({"type": "http.response.body", "body": body, "more_body": False})
            return
        method, respond = self._methods.get(scope["path"], self._other)
        noted, client = method.begin(self._metadata(headers)), scope.get("client")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        call = HttpCall(headers, receive, send, noted, client, uploads=self._calls.uploads, loop=self._loop)
        self._calls.begin(call)
        try:
            try:
                check_headers(scope["headers"], headers, self._max_metadata_bytes)
                timeout = timeout_of(headers.get(b"grpc-timeout"))
                call.deadline = call.started + (method.timeout if timeout is None else timeout)
                reply = await respond(call)
            except LeftError:
                raise
            except asyncio.CancelledError:
                if not call.late:
                    raise
                await call.fail(call.reason)
            except Exception as error:  # noqa: BLE001 (any error must end in a status)
                await call.fail(error)
            else:
                if reply is None:
                    await call.finish()
                elif len(reply) <= LARGE_BYTES:
                    await call.answer(reply)
                else:
                    await self._answer_large(call, reply, scope.get("server"))
        except (LeftError, OSError):  # ASGI servers raise OSError if the caller has left
            pass
        except asyncio.CancelledError:
            if not call.left:
                raise
        finally:
            call.call.end(code_pb2.CANCELLED)  # unless it has ended otherwise
            self._calls.end(call)

    async def _answer_large(self, call: HttpCall, reply: bytes, server: Client | None) -> None:
        """Send a reply within the bound of unread bytes; disconnects a caller that does not read it."""
        connection = connection_of(call.client)
        try:
            self._held.hold(connection, len(reply))
        except QuotaError as error:
            await call.fail(error)
            return
        try:
            await call.answer_large(reply)
        except TimeoutError:
            if call.client is not None and server is not None:
                await asyncio.to_thread(cut, server[1], {peer_of(*call.client)})
        finally:
            self._held.release(connection, len(reply))

    def _metadata(self, headers: Headers) -> list[tuple[str, str | bytes]]:
        return [(key, headers[name].decode("latin-1")) for name, key in self._keys if name in headers]

    def _respond(self, method: Method) -> Respond:
        most = min(self._max_message_bytes, method.largest)
        respond = _unary(method, most, self._held) if isinstance(method, Unary) else _streaming(method, most)
        return respond if method.enter is None else _guarded(method.enter, respond)


def _unary(method: Unary, most: int, held: Held) -> Respond:
    answer = method.answer

    async def respond(call: HttpCall) -> bytes:
        deadline = call.deadline
        call.deadline = min(deadline, call.started + MESSAGE_SECONDS)
        message = await call.message(most)
        call.deadline = deadline
        if len(message) <= LARGE_BYTES:
            return (await answer(message, deadline, call.call.request_id)).SerializeToString()
        with held.holding(connection_of(call.client), len(message)):
            return (await answer(message, deadline, call.call.request_id)).SerializeToString()

    return respond


def _streaming(method: Streaming, most: int) -> Respond:
    serve = method.serve

    def respond(call: HttpCall) -> Awaitable[None]:
        call.longest_look = _STREAM_LOOK_SECONDS
        return serve(call.messages(most), call.send)

    return respond


def _guarded(enter: Enter, respond: Respond) -> Respond:
    async def after_a_look(call: HttpCall) -> bytes | None:
        with enter(HttpCaller(call.headers, call.client)):
            return await respond(call)

    return after_a_look


def _is_grpc(content_type: bytes) -> bool:
    return content_type == GRPC or content_type.startswith((GRPC + b"+", GRPC + b";"))


def _no_method(paths: Collection[str]) -> bytes:
    """List the methods for a caller without gRPC, if reflection is on."""
    message = "there is no such method here"
    if any("Reflection" in path for path in paths):
        ours = [path for path in paths if path.startswith(f"/{SERVICE_NAME}/")]
        message += f": POST JSON to one of {', '.join(ours)}"
    return json.dumps({"code": code_pb2.NOT_FOUND, "message": message}).encode() + b"\n"
