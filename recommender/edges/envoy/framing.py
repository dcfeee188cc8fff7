"""gRPC's framing over HTTP/2 without a transport: messages, compression, time-outs, status messages.

A message is a byte that flags compression, four bytes of length, and that many bytes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from google.rpc import code_pb2

from recommender.edges.calls import ProtocolError
from recommender.errors import quoted

ACCEPTED_ENCODINGS = "identity,gzip,deflate"

_PREFIX = 5
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT_DIGITS = 8
_ENTRY_BYTES = 32
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class FrameError(ProtocolError):
    """Bytes or headers that break gRPC's framing."""


def framed(message: bytes) -> bytes:
    """Frame a message, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def message_of(body: bytes) -> bytes | None:
    """Return the message if the bytes are exactly one, uncompressed; otherwise None, and `Frames` has to parse them."""
    if len(body) >= _PREFIX and body[0] == 0 and int.from_bytes(body[1:_PREFIX], "big") == len(body) - _PREFIX:
        return body[_PREFIX:]
    return None


class Frames:
    """Parses messages from bytes that come in pieces of any size.

    `encoding` is the call's `grpc-encoding`. A message of more than `most` bytes, before or after it is unpacked, is
    refused as soon as its length is known.
    """

    def __init__(self, most: int, encoding: str = "identity") -> None:
        self._most = most
        self._encoding = encoding
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes. Raises FrameError if the message that they begin is too large."""
        self._buffer += data
        if len(self._buffer) >= _PREFIX:
            self._size()

    def next(self) -> bytes | None:
        """Return the next message; None until it is complete. Raises FrameError if it is malformed."""
        buffer = self._buffer
        if len(buffer) < _PREFIX:
            return None
        end = _PREFIX + self._size()
        if len(buffer) < end:
            return None
        compressed, message = buffer[0], bytes(memoryview(buffer)[_PREFIX:end])
        del buffer[:end]
        if compressed == 0:
            return message
        if compressed != 1:
            raise FrameError(
                code_pb2.INVALID_ARGUMENT, f"a message begins with the flag {compressed}; gRPC knows 0 and 1"
            )
        return self._unpacked(message)

    @property
    def pending(self) -> bool:
        """Whether part of a message is buffered."""
        return bool(self._buffer)

    def _size(self) -> int:
        size = int.from_bytes(self._buffer[1:_PREFIX], "big")
        if size > self._most:
            raise self._too_large(f"of {size} bytes")
        return size

    def _too_large(self, what: str) -> FrameError:
        return FrameError(
            code_pb2.RESOURCE_EXHAUSTED, f"a message {what} is larger than the {self._most} that are taken"
        )

    def _unpacked(self, message: bytes) -> bytes:
        bits = _WINDOW_BITS.get(self._encoding)
        if bits is None:
            raise FrameError(code_pb2.INTERNAL, "a message is compressed, and the call has no grpc-encoding")
        unpacker = zlib.decompressobj(bits)
        try:
            unpacked = unpacker.decompress(message, self._most + 1)
        except zlib.error as error:
            raise FrameError(code_pb2.INTERNAL, f"a message is not what {self._encoding} makes") from error
        if len(unpacked) > self._most:
            raise self._too_large(f"unpacked from {len(message)} bytes")
        if not unpacker.eof:
            raise FrameError(code_pb2.INTERNAL, f"a message is not all that {self._encoding} made")
        return unpacked


def check_headers(lines: Sequence[tuple[bytes, bytes]], headers: Mapping[bytes, bytes], most: int) -> None:
    """Hold the headers of a call to gRPC's rules, and to `most` bytes in all. Raises FrameError.

    `lines` are all of them, `headers` the last of each name.
    """
    # As gRPC counts: 32 bytes for each entry.
    size = sum([len(name) + len(value) for name, value in lines]) + _ENTRY_BYTES * len(lines)
    if size > most:
        raise FrameError(
            code_pb2.RESOURCE_EXHAUSTED, f"the metadata of {size} bytes is larger than the {most} that are taken"
        )
    if headers.get(b"te") != b"trailers":
        raise FrameError(code_pb2.INTERNAL, "gRPC needs the header `te: trailers`; a proxy may have removed it")
    encoding = headers.get(b"grpc-encoding")
    if encoding is not None:
        encoding_of(encoding)


def encoding_of(value: bytes) -> str:
    """Return the name of a `grpc-encoding`. Raises FrameError if it is not supported."""
    encoding = value.decode("latin-1")
    if encoding not in ("identity", *_WINDOW_BITS):
        raise FrameError(
            code_pb2.INTERNAL, f"messages compressed by {quoted(encoding)} are not taken; {ACCEPTED_ENCODINGS} are"
        )
    return encoding


def timeout_of(value: bytes | None) -> float | None:
    """Parse a `grpc-timeout` into seconds. Raises FrameError if malformed.

    Returns None if absent, or too long for gRPC: then the call has no deadline.
    """
    if value is None:
        return None
    text = value.decode("latin-1")
    number, unit = text[:-1].strip(" "), _UNITS.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdigit()):
        raise FrameError(
            code_pb2.INTERNAL, f"grpc-timeout {quoted(text)} is not a number of 8 digits at most and one of HMSmun"
        )
    return int(number) * unit if len(number) <= _TIMEOUT_DIGITS else None


def header_lines(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Encode metadata as HTTP headers; binary values become base64 without padding."""
    return [
        (
            key.encode("ascii"),
            base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode("ascii"),
        )
        for key, value in metadata
    ]


def status_message(message: str) -> bytes:
    """Percent-encode a status message for the header `grpc-message`."""
    return quote(message, safe=_PRINTABLE).encode("ascii")
