"""An HTTP/2 connection that costs a load generator tens of microseconds a call, where a gRPC library costs hundreds.

Frames are put together from prepared parts. Of a reply only the outcome is read. We request a header table of size 0
from the server, so equal trailers are equal bytes and are decoded once. Plaintext only. Flow control is kept in both
directions. The caller owns the clock and the waiting (`fileno`, `receive`, `flush`).
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from hpack import Decoder, Encoder

Headers: TypeAlias = tuple[tuple[str, str], ...]

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_PADDED_OR_PRIORITY = 0x28
_HEAD = 9
_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 3, 4, 5
_CANCEL, _REFUSED_STREAM = 8, 7
_LARGEST_WINDOW = 2**31 - 1
_FIRST_WINDOW = 65_535
_TOPPED_UP = 2**29
"""Bytes of replies after which the server is granted as many again."""
_CONNECT_SECONDS = 5.0

UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]
INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]


@dataclass(slots=True)
class Ended:
    """A stream that has ended: its caller, its gRPC status, and its replies if they were kept."""

    caller: int
    status: int
    body: bytes


@dataclass(slots=True)
class _Stream:
    caller: int
    kept: bytearray | None
    window: int


class Connection:
    """One connection to `host:port`. Callers are numbers of the user's choice, returned with each outcome.

    `slow` makes it a reader that grants the server no bytes for replies until `read_on`. Raises OSError when the server
    cannot be reached.
    """

    def __init__(self, target: str, *, slow: bool = False) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), _CONNECT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(0)
        self._encoder, self._decoder = Encoder(), Decoder()
        self._blocks: dict[Headers, bytes] = {}
        self._statuses: dict[bytes, int] = {}
        self._streams: dict[int, _Stream] = {}
        self._next = 1
        self._rest = b""
        self._due: deque[tuple[int, bytes, bool]] = deque()
        """DATA that waits for the server's leave to send it: stream, bytes, whether they are the last."""
        self._queued: deque[tuple[Headers, bytes, int, bool]] = deque()
        """Calls that wait until the server takes another stream."""
        self._window = _FIRST_WINDOW
        self._stream_window = _FIRST_WINDOW
        self._max_frame = 16_384
        self._max_streams = _LARGEST_WINDOW
        self._received = 0
        self._slow = slow
        self.is_open = True
        """False when no new call can be made here: the server said so, or the connection is lost."""
        window = 0 if slow else _LARGEST_WINDOW
        settings = b"".join(
            key.to_bytes(2, "big") + value.to_bytes(4, "big")
            for key, value in ((_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_INITIAL_WINDOW, window))
        )
        self._out = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings))
        self._out += _window_update(0, _LARGEST_WINDOW - _FIRST_WINDOW)

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    @property
    def in_flight(self) -> int:
        """Calls that have not ended, unsent ones included."""
        return len(self._streams) + len(self._queued)

    @property
    def has_output(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._out)

    def call(self, headers: Headers, body: bytes, caller: int, *, keep: bool = False) -> int:
        """Send a whole request; `body` is framed as gRPC frames it. `keep` the reply's body for when it has ended.

        Gives a number for `cancel`; 0 if the call has to wait until the server takes another.
        """
        if len(self._streams) >= self._max_streams:
            self._queued.append((headers, body, caller, keep))
            return 0
        stream, block = self._next, self._block(headers)
        self._next += 2
        self._streams[stream] = _Stream(caller, bytearray() if keep else None, self._stream_window)
        number, length = stream.to_bytes(4, "big"), len(body)
        self._out += b"%b\x01\x04%b%b" % (len(block).to_bytes(3, "big"), number, block)
        if not self._due and length <= self._max_frame and length <= self._window and length <= self._stream_window:
            self._window -= length
            self._out += b"%b\x00\x01%b%b" % (length.to_bytes(3, "big"), number, body)
        else:
            self._write(stream, body, last=True)
        return stream

    def open_stream(self, headers: Headers, caller: int) -> int:
        """Begin a call whose messages follow; returns its number for `write`, `messages` and `cancel`."""
        stream, block = self._next, self._block(headers)
        self._next += 2
        self._streams[stream] = _Stream(caller, bytearray(), self._stream_window)
        self._out += _frame(_HEADERS, _END_HEADERS, stream, block)
        return stream

    def write(self, stream: int, body: bytes, *, last: bool = False) -> None:
        """Send more of an open stream, when the server's windows allow."""
        if stream in self._streams:
            self._write(stream, body, last=last)

    def messages(self, stream: int) -> Iterator[bytes]:
        """The whole messages that have come on an open stream since the last time."""
        open_stream = self._streams.get(stream)
        if open_stream is not None and open_stream.kept is not None:
            yield from unframed(open_stream.kept)

    def has_stream(self, stream: int) -> bool:
        """Whether the stream is still open."""
        return stream in self._streams

    def cancel(self, stream: int) -> bool:
        """Reset a call; whether it was still open."""
        if self._streams.pop(stream, None) is None:
            return False
        self._out += _frame(_RST_STREAM, 0, stream, _CANCEL.to_bytes(4, "big"))
        return True

    def read_on(self) -> None:
        """Grant a slow reader's streams all they want."""
        for stream in self._streams:
            self._out += _window_update(stream, _LARGEST_WINDOW)

    def flush(self) -> None:
        """Send what can be sent without waiting."""
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            return
        except OSError:
            self.is_open = False
            return
        del self._out[:sent]

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def receive(self) -> list[Ended]:
        """Take what has come; the calls that ended by it."""
        try:
            chunk = self._socket.recv(1 << 18)
        except BlockingIOError:
            return []
        except OSError:
            chunk = b""
        if not chunk:
            return self._lost()
        data = self._rest + chunk
        ended: list[Ended] = []
        at, size = 0, len(data)
        while size - at >= _HEAD and size >= (end := at + _HEAD + int.from_bytes(data[at : at + 3], "big")):
            kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big")
            if kind == _DATA:
                self._received += end - at - _HEAD
                found = self._streams.get(stream)
                if found is not None and found.kept is not None:
                    found.kept += data[at + _HEAD : end]
            elif kind == _HEADERS:
                self._headers(flags, stream, data[at + _HEAD : end], ended)
            else:
                self._control(kind, flags, stream, data[at + _HEAD : end], ended)
            at = end
        self._rest = data[at:]
        if self._received >= _TOPPED_UP:
            self._out += _window_update(0, self._received)
            self._received = 0
        return ended

    def _headers(self, flags: int, stream: int, block: bytes, ended: list[Ended]) -> None:
        if not flags & _END_STREAM:
            return
        if flags & _PADDED_OR_PRIORITY or not flags & _END_HEADERS:
            raise RuntimeError("the server pads or splits trailers, which this generator does not read")
        self._end(stream, self._status(block), ended)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes, ended: list[Ended]) -> None:
        if kind == _WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += more
            elif stream in self._streams:
                self._streams[stream].window += more
            self._pump()
        elif kind == _RST_STREAM:
            refused = int.from_bytes(payload, "big") == _REFUSED_STREAM
            self._end(stream, UNAVAILABLE if refused else INTERNAL, ended)
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
            self._out += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._out += _frame(_PING, _ACK, 0, payload)
        elif kind == _GOAWAY:
            self.is_open = False
            last = int.from_bytes(payload[:4], "big")
            for number in [number for number in self._streams if number > last]:
                self._end(number, UNAVAILABLE, ended)
            ended += [Ended(caller, UNAVAILABLE, b"") for _, _, caller, _ in self._queued]
            self._queued.clear()
        elif kind == _CONTINUATION:
            raise RuntimeError("the server splits headers, which this generator does not read")

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            key, value = int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            if key == _INITIAL_WINDOW:
                for stream in self._streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
            elif key == _MAX_STREAMS:
                self._max_streams = value
            elif key == _MAX_FRAME:
                self._max_frame = value
            elif key == _TABLE_SIZE:
                self._encoder.header_table_size = min(value, 4096)
                self._blocks.clear()
        self._pump()

    def _block(self, headers: Headers) -> bytes:
        """The headers as bytes; repeated ones are sent by their number in the table, as gRPC's clients do."""
        block = self._blocks.get(headers)
        if block is None:
            block = self._encoder.encode(headers)
            self._blocks.clear()  # what is new to the table moves the numbers of the rest
            self._blocks[headers] = self._encoder.encode(headers)
        return block

    def _status(self, block: bytes) -> int:
        status = self._statuses.get(block)
        if status is None:
            told = dict(self._decoder.decode(block, raw=True)).get(b"grpc-status", b"2")
            status = int(told)
            if len(self._statuses) < 256:
                self._statuses[bytes(block)] = status
        return status

    def _end(self, stream: int, status: int, ended: list[Ended]) -> None:
        found = self._streams.pop(stream, None)
        if found is not None:
            ended.append(Ended(found.caller, status, bytes(found.kept) if found.kept is not None else b""))
        while self._queued and self.is_open and len(self._streams) < self._max_streams:
            headers, body, caller, keep = self._queued.popleft()
            self.call(headers, body, caller, keep=keep)

    def _lost(self) -> list[Ended]:
        self.is_open = False
        callers = [*(stream.caller for stream in self._streams.values()), *(caller for _, _, caller, _ in self._queued)]
        self._streams.clear()
        self._queued.clear()
        self._out.clear()
        return [Ended(caller, UNAVAILABLE, b"") for caller in callers]

    def _write(self, stream: int, body: bytes, *, last: bool) -> None:
        chunks = [body[at : at + self._max_frame] for at in range(0, len(body), self._max_frame)] or [b""]
        for chunk in chunks[:-1]:
            self._due.append((stream, chunk, False))
        self._due.append((stream, chunks[-1], last))
        self._pump()

    def _pump(self) -> None:
        while self._due:
            stream, chunk, last = self._due[0]
            found = self._streams.get(stream)
            if found is not None:
                if len(chunk) > self._window or len(chunk) > found.window:
                    return
                self._window -= len(chunk)
                found.window -= len(chunk)
                self._out += _frame(_DATA, _END_STREAM if last else 0, stream, chunk)
            self._due.popleft()


def framed(*messages: bytes) -> bytes:
    """The messages as gRPC puts them on a stream, uncompressed."""
    return b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)


def unframed(body: bytearray) -> Iterator[bytes]:
    """Take the whole messages from the beginning of what has come."""
    at = 0
    while len(body) - at >= 5 and len(body) - at - 5 >= (length := int.from_bytes(body[at + 1 : at + 5], "big")):
        yield bytes(body[at + 5 : at + 5 + length])
        at += 5 + length
    del body[:at]


def request_headers(target: str, method: str, timeout: float, extra: Sequence[tuple[str, str]] = ()) -> Headers:
    """The headers of a call with a deadline (seconds), as gRPC's clients send them."""
    return (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/recommend_api.v1.RecommenderService/{method}"),
        (":authority", target),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "recommender-bench"),
        ("grpc-timeout", f"{max(round(timeout * 1e3), 1)}m"),
        *extra,
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _window_update(stream: int, more: int) -> bytes:
    return _frame(_WINDOW_UPDATE, 0, stream, more.to_bytes(4, "big"))
