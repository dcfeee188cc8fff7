"""gRPC's framing over HTTP/2, as its protocol page has it: messages, compression, timeouts, messages of statuses.

Pure code without a transport. A message is one byte that tells whether it is compressed, four bytes of length,
and as many bytes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from urllib.parse import quote

from google.rpc import code_pb2

from recommender.edges.calls import ProtocolError

ACCEPTED_ENCODINGS = "identity,gzip,deflate"

_PREFIX = 5
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT_DIGITS = 8
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class FrameError(ProtocolError):
    """Bytes or headers that break gRPC's framing."""


def framed(message: bytes) -> bytes:
    """A message as it travels, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def message_of(body: bytes) -> bytes | None:
    """The one uncompressed message that the bytes are, None where they are anything else: see Frames."""
    if len(body) >= _PREFIX and body[0] == 0 and int.from_bytes(body[1:_PREFIX], "big") == len(body) - _PREFIX:
        return body[_PREFIX:]
    return None


class Frames:
    """Messages out of bytes that come in pieces of any size.

    `encoding` is what the call says of compressed ones (`grpc-encoding`). A message of more than `most` bytes,
    before or after it is unpacked, is refused as soon as its length is known.
    """

    def __init__(self, most: int, encoding: str = "identity") -> None:
        self._most = most
        self._encoding = encoding
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what came. Raises FrameError if a message that begins in it is too large."""
        self._buffer += data
        if len(self._buffer) >= _PREFIX:
            self._size()

    def next(self) -> bytes | None:
        """The next message, None while it is not complete. Raises FrameError if it cannot be had."""
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
            raise FrameError(code_pb2.INTERNAL, f"a message begins with the flag {compressed}; gRPC knows 0 and 1")
        return self._unpacked(message)

    @property
    def pending(self) -> bool:
        """Whether a message has begun that is not complete."""
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


def check_encoding(encoding: str) -> str:
    """The encoding, if messages of it can be unpacked. Raises FrameError if not."""
    if encoding not in ("identity", *_WINDOW_BITS):
        raise FrameError(
            code_pb2.UNIMPLEMENTED, f"messages compressed by {encoding} are not taken; {ACCEPTED_ENCODINGS} are"
        )
    return encoding


def timeout_of(value: bytes | None) -> float | None:
    """The seconds of a `grpc-timeout`, None where there is none. Raises FrameError if it is no such thing."""
    if value is None:
        return None
    text = value.decode("latin-1")
    number, unit = text[:-1], _UNITS.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdigit()) or len(number) > _TIMEOUT_DIGITS:
        raise FrameError(code_pb2.INVALID_ARGUMENT, f"grpc-timeout {text!r} is not 1 to 8 digits and one of HMSmun")
    return int(number) * unit


def header_lines(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Metadata as HTTP headers; binary values are base64 without padding."""
    return [
        (
            key.encode("ascii"),
            base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode("ascii"),
        )
        for key, value in metadata
    ]


def status_message(message: str) -> bytes:
    """A status's message as the header `grpc-message` has it."""
    return quote(message, safe=_PRINTABLE).encode("ascii")
