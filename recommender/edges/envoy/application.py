"""The ASGI edge: gRPC calls as an ASGI server hands them over, unary and streams, with health and reflection.

Such a server tells that a caller has left only where it is asked for more of the request, and never on its own
accord once the request is complete. So a sweep looks at calls that take long: each is asked about when it has grown by
half, so a call is late in noticing by half its age at most, and calls that end within a sweep are never asked about.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

from google.protobuf.message import Message
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from recommender.api.messages import decoded
from recommender.api.metadata import SERVICE_NAME
from recommender.api.service import RecommenderService
from recommender.edges.calls import Calls
from recommender.edges.envoy.call import (
    GRPC,
    OK,
    REQUEST_ID,
    START,
    SWEEP_SECONDS,
    Headers,
    HttpCall,
    LeftError,
    Receive,
    Scope,
    Send,
    look_at_end,
    text_of,
)
from recommender.edges.envoy.framing import (
    FrameError,
    framed,
    timeout_of,
)
from recommender.edges.health import SERVICE_NAME as HEALTH_NAME
from recommender.edges.health import Health
from recommender.edges.reflection import METHODS as REFLECTION_METHODS
from recommender.edges.reflection import Reflection
from recommender.edges.streams import Stream
from recommender.errors import DeadlineError, QuotaError, RecommenderError, UnavailableError
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.security.access import AUTHORIZATION_KEY, Access

_LONGEST_LOOK_SECONDS = 1.0
"""At most this long after its caller has left, a call ends."""

_AUTHORIZATION = AUTHORIZATION_KEY.encode()
_STREAM_RETRY = 1.0
"""Seconds after which another stream may be tried where as many are open as may be."""
_STRANGER = b"gRPC is spoken here: POST with content-type application/grpc, over HTTP/2\n"
_LATE = "the deadline passed while the call was open"


Unary: TypeAlias = Callable[[bytes, HttpCall], Awaitable[Message]]
Streaming: TypeAlias = Callable[[HttpCall], Awaitable[None]]


class AsgiEdge:
    """Answers gRPC calls over ASGI; RecommenderService's with UNAVAILABLE until `open` has given it one.

    `default_timeout` (seconds) stands in where the caller sets no deadline, `most_open` is how many requests of one
    stream are open at once, `most_streams` how many streams are, `max_message_bytes` bounds a message of a request.
    Calls of RecommenderService are noted in `rpcs`. With `access` every call needs a token, save health where
    `open_health` says so.
    """

    def __init__(
        self,
        *,
        default_timeout: float,
        most_open: int,
        most_streams: int,
        max_message_bytes: int,
        rpcs: Calls,
        access: Access | None = None,
        open_health: bool = True,
        reflection: bool = True,
    ) -> None:
        self._most_streams = most_streams
        self._access = access
        self._rpcs = rpcs
        self._keys = tuple((key.encode(), key) for key in rpcs.keys)
        self._service: RecommenderService | None = None
        self._default_timeout = default_timeout
        self._most_open = most_open
        self._max_message_bytes = max_message_bytes
        self.health = Health((SERVICE_NAME,))
        """What is told of the server's health; who owns the server turns it."""
        self._reflection = Reflection((SERVICE_NAME, HEALTH_NAME))
        self._streams: set[Stream] = set()
        self._draining = False
        self._calls: dict[HttpCall, None] = {}
        self._sweeping = False
        self._refusing: set[asyncio.Task[None]] = set()
        ours, healths = f"/{SERVICE_NAME}/", f"/{HEALTH_NAME}/"
        self._unary: dict[str, Unary] = {
            ours + "Recommend": self._recommend,
            ours + "BatchRecommend": self._batch_recommend,
            ours + "GetModel": self._get_model,
            ours + "ListModels": self._list_models,
            healths + "Check": self._check,
        }
        self._streaming: dict[str, Streaming] = {
            ours + "StreamRecommend": self._stream_recommend,
            healths + "Watch": self._watch,
            **(dict.fromkeys(REFLECTION_METHODS, self._reflect) if reflection else {}),
        }

        # Of what holds many requests, each is charged as it is read: see the service.
        self._charges = dict.fromkeys((*self._unary, *self._streaming), 1)
        self._charges |= {ours + "BatchRecommend": 0, ours + "StreamRecommend": 0}
        if open_health:
            self._charges = {path: charge for path, charge in self._charges.items() if not path.startswith(healths)}
        self._noted = {path: path[1:] for path in (*self._unary, *self._streaming) if path.startswith(ours)}

    def open(self, service: RecommenderService) -> None:
        """Answer with this service from now on."""
        self._service = service

    @property
    def calls(self) -> int:
        """How many calls are open."""
        return len(self._calls)

    def drain(self) -> None:
        """Read no more from open streams; each ends when what it has read is answered."""
        self._draining = True
        for stream in tuple(self._streams):
            stream.stop_reading()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        headers = dict(scope["headers"])
        if scope["method"] != "POST" or not _is_grpc(headers.get(b"content-type", b"")):
            await _refuse_stranger(send)
            return
        path = scope["path"]
        method = self._noted.get(path)
        rpc = None if method is None else self._rpcs.begin(method, self._metadata(headers))
        call = HttpCall(headers, receive, send, time.monotonic(), rpc)
        self._calls[call] = None
        if not self._sweeping:
            self._sweep_later()
        try:
            if self._access is None or path not in self._charges:
                await self._dispatch(path, call)
            else:
                await self._let_in(self._access, path, call)
        except (LeftError, OSError):  # OSError is what ASGI servers raise where a caller has left
            pass
        except asyncio.CancelledError:
            if not call.left:
                raise
        finally:
            call.note(code_pb2.CANCELLED)  # unless it has ended otherwise
            del self._calls[call]

    async def _let_in(self, access: Access, path: str, call: HttpCall) -> None:
        try:
            visit = access.enter(text_of(call.headers.get(_AUTHORIZATION)), self._charges[path])
        except RecommenderError as error:
            await call.refuse(error)
            return
        with visit:
            await self._dispatch(path, call)

    async def _dispatch(self, path: str, call: HttpCall) -> None:
        unary = self._unary.get(path)
        if unary is not None:
            await self._answer(unary, call)
        else:
            await self._answer_stream(self._streaming.get(path, _unknown), call)

    def _metadata(self, headers: Headers) -> list[tuple[str, str | bytes]]:
        return [(key, headers[name].decode("latin-1")) for name, key in self._keys if name in headers]

    async def _answer(self, unary: Unary, call: HttpCall) -> None:
        try:
            timeout = timeout_of(call.headers.get(b"grpc-timeout"))
            call.deadline = call.started + (self._default_timeout if timeout is None else timeout)
            reply = framed((await unary(await call.message(self._max_message_bytes), call)).SerializeToString())
        except LeftError:
            raise
        except asyncio.CancelledError:
            if not call.late:
                raise
            await call.refuse(DeadlineError(_LATE))
        except Exception as error:  # noqa: BLE001 (whatever went wrong, the caller gets a status)
            await call.refuse(error)
        else:
            send = call.send
            call.deadline = math.inf  # what is on its way is not cut
            await send(START)
            await send({"type": "http.response.body", "body": reply, "more_body": False})
            await send({"type": "http.response.trailers", "headers": [OK, (REQUEST_ID, call.id.encode())]})
            call.note(code_pb2.OK)

    async def _answer_stream(self, streaming: Streaming, call: HttpCall) -> None:
        try:
            timeout = timeout_of(call.headers.get(b"grpc-timeout"))
            call.deadline = math.inf if timeout is None else call.started + timeout
            await streaming(call)
        except (LeftError, OSError):
            raise
        except asyncio.CancelledError:
            if not call.late:
                raise
            await call.refuse(DeadlineError(_LATE))
        except Exception as error:  # noqa: BLE001 (whatever went wrong, the caller gets a status)
            await call.refuse(error)
        else:
            await call.end()

    async def _recommend(self, message: bytes, call: HttpCall) -> Message:
        request = decoded(api.RecommendRequest, message)
        return await self._opened().recommend(request, call.deadline, call.id)

    async def _batch_recommend(self, message: bytes, call: HttpCall) -> Message:
        return await self._opened().batch_recommend(decoded(api.BatchRecommendRequest, message), call.deadline)

    async def _get_model(self, message: bytes, _: HttpCall) -> Message:
        return self._opened().get_model(decoded(api.GetModelRequest, message))

    async def _list_models(self, message: bytes, _: HttpCall) -> Message:
        return self._opened().list_models(decoded(api.ListModelsRequest, message))

    async def _stream_recommend(self, call: HttpCall) -> None:
        service = self._opened()
        if len(self._streams) >= self._most_streams:
            raise QuotaError(f"{self._most_streams} streams are open, as many as may be", _STREAM_RETRY)

        async def requests() -> AsyncIterator[api.StreamRecommendRequest]:
            async for message in call.messages(self._max_message_bytes):
                yield decoded(api.StreamRecommendRequest, message)

        async def answer(request: api.StreamRecommendRequest) -> api.StreamRecommendResponse:
            timeout = request.timeout_ms / 1e3 if request.timeout_ms > 0 else self._default_timeout
            return await service.stream_recommend(request, time.monotonic() + timeout)

        stream = Stream(answer, call.reply, most_open=self._most_open)
        self._streams.add(stream)
        try:
            if self._draining:
                stream.stop_reading()
            await stream.serve(requests())
        finally:
            self._streams.discard(stream)

    async def _check(self, message: bytes, _: HttpCall) -> Message:
        request = decoded(health_pb2.HealthCheckRequest, message)
        found = self.health.check(request)
        if found is None:
            raise FrameError(code_pb2.NOT_FOUND, f"there is no service {request.service!r} here")
        return found

    async def _watch(self, call: HttpCall) -> None:
        request = decoded(health_pb2.HealthCheckRequest, await call.message(self._max_message_bytes))
        async for response in self.health.watch(request):
            await call.reply(response)

    async def _reflect(self, call: HttpCall) -> None:
        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            async for message in call.messages(self._max_message_bytes):
                yield decoded(reflection_pb2.ServerReflectionRequest, message)

        async for response in self._reflection.described(requests()):
            await call.reply(response)

    def _opened(self) -> RecommenderService:
        if self._service is None:
            raise UnavailableError("the model is being loaded; call another server or retry")
        return self._service

    def _sweep_later(self) -> None:
        self._sweeping = True
        asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Ask after the callers of long calls, and end calls whose deadline has passed."""
        now = time.monotonic()
        for call in self._calls:
            if now > call.deadline and not call.late:
                self._end_late(call)
            elif now >= call.look_at and call.read and not call.asked:
                call.look_at = now + min((now - call.started) / 2, _LONGEST_LOOK_SECONDS)
                call.ask()
        self._sweeping = bool(self._calls)
        if self._sweeping:
            self._sweep_later()

    def _end_late(self, call: HttpCall) -> None:
        call.late = True
        if call.waits:
            # Whoever is told the end of the call tells the call that its caller has left.
            refusing = asyncio.create_task(call.refuse(DeadlineError(_LATE)))
            self._refusing.add(refusing)
            refusing.add_done_callback(self._refusing.discard)
            refusing.add_done_callback(look_at_end)
        else:
            call.cancel()


async def _unknown(_: HttpCall) -> None:
    raise FrameError(code_pb2.UNIMPLEMENTED, "there is no such method here; reflection tells which there are")


def _is_grpc(content_type: bytes) -> bool:
    return content_type == GRPC or content_type.startswith((GRPC + b"+", GRPC + b";"))


async def _refuse_stranger(send: Send) -> None:
    """Tell who speaks HTTP and not gRPC what is spoken here."""
    await send({"type": "http.response.start", "status": 415, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": _STRANGER, "more_body": False})
