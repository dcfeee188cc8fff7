"""A caller that speaks HTTP/2 itself, and so can do what no gRPC library would."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import h2.config
import h2.connection
import h2.events
from hyperframe.frame import Frame, GoAwayFrame, SettingsFrame

TIMEOUT = 30.0
RECOMMEND = "/recommend_api.v1.RecommenderService/Recommend"
HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", RECOMMEND),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


class Raw:
    """One connection; `http2` makes what `flush` sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # Broken frames must pass.
        self.http2 = h2.connection.H2Connection(
            h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        self._events: deque[h2.events.Event] = deque()

    async def flush(self) -> None:
        """Send what there is to send."""
        self._writer.write(self.http2.data_to_send())
        await self._writer.drain()

    async def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises ConnectionResetError if the server has closed the connection."""
        if self._writer.is_closing():
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()

    async def call(self, path: str = RECOMMEND, message: bytes | None = None, *headers: tuple[str, str]) -> int:
        """Open a call and return its stream; with a message the call is whole, without one nothing has been sent."""
        stream = self.http2.get_next_available_stream_id()
        self.http2.send_headers(stream, (*HEADERS[:2], (":path", path), *HEADERS[3:], *headers))
        if message is not None:
            body = b"\0" + len(message).to_bytes(4, "big") + message
            self.http2.send_data(stream, body, end_stream=True)
        await self.flush()
        return stream

    async def until(self, *kinds: type[h2.events.Event]) -> h2.events.Event:
        """Read up to an event of these kinds. Raises EOFError if the connection ends before."""
        while not isinstance(event := await self._event(), kinds):
            pass
        return event

    async def trailers(self, stream: int) -> dict[str, str]:
        """Read until the server ends a stream: its last headers, without those of HTTP. Raises EOFError if reset."""
        found: dict[str, str] = {}
        while True:
            event = await self._event()
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                found |= {_text(name): _text(value) for name, value in event.headers or ()}
            elif isinstance(event, h2.events.StreamReset):
                raise EOFError(f"reset with {event.error_code}")  # noqa: TRY004 (no type is wrong)
            elif isinstance(event, h2.events.StreamEnded):
                return found

    async def status(self, stream: int) -> int:
        """Read until the server ends a stream: its `grpc-status`. Raises EOFError if reset."""
        return int((await self.trailers(stream))["grpc-status"])

    async def goaway(self) -> tuple[int, bytes]:
        """Read until the server ends the connection: the error code that it gives, and what it says."""
        # By hand: a PING is sent with it, which h2 rejects after the end.
        async with asyncio.timeout(TIMEOUT):
            while True:
                frame, length = Frame.parse_frame_header(memoryview(await self._reader.readexactly(9)))
                body = await self._reader.readexactly(length)
                if isinstance(frame, GoAwayFrame):
                    frame.parse_body(memoryview(body))
                    return frame.error_code, frame.additional_data
                if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                    acknowledged = SettingsFrame(flags=["ACK"])
                    self._writer.write(acknowledged.serialize())

    async def ended(self) -> bool:
        """Wait until the server closes the connection."""
        async with asyncio.timeout(TIMEOUT):
            with suppress(ConnectionResetError):  # what was sent and never read
                while await self._reader.read(65536):
                    pass
        return True

    async def _event(self) -> h2.events.Event:
        """Read the next event. Raises EOFError if the connection ends before."""
        while not self._events:
            async with asyncio.timeout(TIMEOUT):
                data = await self._reader.read(65536)
            if not data:
                raise EOFError
            self._events.extend(self.http2.receive_data(data))
            await self.flush()
        return self._events.popleft()


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


@asynccontextmanager
async def raw(port: int, *, greeted: bool = True) -> AsyncIterator[Raw]:
    """A connection, with HTTP/2 negotiated if it is to be `greeted`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    made = Raw(reader, writer)
    try:
        if greeted:
            made.http2.initiate_connection()
            await made.flush()
        yield made
    finally:
        writer.close()
