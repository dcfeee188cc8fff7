"""Raw bytes on the port: sessions of HTTP/2 that begin well and go wrong, in ways that are drawn.

Coverage cannot guide this, since what reads the bytes is gRPC's C core; so the inputs have the structure of what it
reads. After each some, a good caller must get its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections import Counter
from collections.abc import Callable

from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from recommender.client import Client
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.facts import FACTS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
METHODS = (
    *(f"recommend_api.v1.RecommenderService/{name}" for name in ("Recommend", "BatchRecommend", "StreamRecommend")),
    *(f"recommend_api.v1.RecommenderService/{name}" for name in ("GetModel", "ListModels", "Nothing")),
    *(f"inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer", "ServerLive")),
)
GOOD = api.RecommendRequest(item_ids=[0]).SerializeToString()
_GOOD_EVERY = 25
_REPLY_SECONDS = 0.05


def session(draw: random.Random) -> bytes:
    """The bytes of one connection."""
    shape = draw.random()
    if shape < 0.05:
        return draw.randbytes(draw.randrange(1, 2000))
    frames: list[Frame] = [SettingsFrame(settings={draw.randrange(10): draw.choice((0, 1, 100, 2**31 - 1, 2**32 - 1))})]
    encoder = Encoder()
    for call in range(draw.randrange(1, 6)):
        frames += _call(draw, encoder, 1 + 2 * call)
    for _ in range(draw.choice((0, 0, 1, 2, 5, 200))):
        frames.insert(draw.randrange(len(frames) + 1), _odd_frame(draw))
    if draw.random() < 0.2:
        draw.shuffle(frames)
    if draw.random() < 0.1:
        frames = [draw.choice(frames)] * draw.choice((2, 50, 1000))
    data = b"".join(frame.serialize() for frame in frames)
    return (PREFACE if draw.random() < 0.97 else b"") + _damaged(draw, data)


def _call(draw: random.Random, encoder: Encoder, stream: int) -> list[Frame]:
    headers = [
        (":method", draw.choice(("POST", "POST", "POST", "GET", ""))),
        (":scheme", "http"),
        (":path", f"/{draw.choice(METHODS)}"),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", draw.choice(("application/grpc", "application/grpc+proto", "text/plain"))),
    ]
    extra = [
        ("grpc-timeout", draw.choice(("1S", "0n", "99999999H", "-1S", "x", ""))),
        ("grpc-encoding", draw.choice(("gzip", "identity", "deflate", "nonsense"))),
        ("x-request-id", "x" * draw.choice((1, 128, 129, 5000))),
        ("authorization", draw.choice(("Bearer x", "", "\x00"))),
        ("x-bin", "not base64!"),
        ("grpc-trace-bin", ""),
        (draw.choice(("X-Upper", "", "\n", ":late")), "y"),
    ]
    headers += draw.sample(extra, draw.randrange(3))
    frame = HeadersFrame(stream, data=encoder.encode(headers))
    frame.flags.add("END_HEADERS")
    frames: list[Frame] = [frame]
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        message = draw.choice((GOOD, b"", draw.randbytes(draw.randrange(200)), GOOD * 50))
        length = draw.choice((len(message), len(message), len(message), 0, 1, len(message) + 1, 2**32 - 1))
        frames.append(DataFrame(stream, data=struct.pack(">BI", draw.choice((0, 0, 0, 1, 255)), length) + message))
    if draw.random() < 0.8:
        frames[-1].flags.add("END_STREAM")
    return frames


def _odd_frame(draw: random.Random) -> Frame:
    stream = draw.choice((0, 1, 2, 3, 5, 99, 2**31 - 1))
    made: list[Callable[[], Frame]] = [
        lambda: SettingsFrame(0, settings={draw.randrange(1, 7): draw.randrange(2**32)}),
        lambda: PingFrame(0, opaque_data=draw.randbytes(8)),
        lambda: WindowUpdateFrame(stream, window_increment=draw.choice((1, 2**31 - 1))),
        lambda: RstStreamFrame(stream or 1, error_code=draw.randrange(20)),
        lambda: GoAwayFrame(0, last_stream_id=stream, error_code=draw.randrange(20)),
        lambda: PriorityFrame(stream or 1, depends_on=draw.choice((0, 1, stream)), stream_weight=draw.randrange(256)),
        lambda: PushPromiseFrame(stream or 1, promised_stream_id=2, data=b"x"),
        lambda: ContinuationFrame(stream or 1, data=draw.randbytes(draw.randrange(100))),
        lambda: DataFrame(stream or 1, data=draw.randbytes(draw.randrange(100))),
    ]
    return draw.choice(made)()


def _damaged(draw: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    kind = draw.random()
    if kind < 0.3:
        for _ in range(draw.choice((1, 1, 2, 10))):
            found[draw.randrange(len(found))] = draw.randrange(256)
    elif kind < 0.4:
        del found[draw.randrange(len(found)) :]
    elif kind < 0.5:
        at = draw.randrange(len(found))
        found[at:at] = draw.randbytes(draw.randrange(1, 50))
    return bytes(found)


async def fuzz_port(port: int, *, seed: int, until: Callable[[int], bool]) -> Counter[str]:
    """Send that many random sessions. Raises if a regular caller does not get its answer."""
    seen: Counter[str] = Counter()
    async with Client(f"127.0.0.1:{port}") as client:
        while not until(seen.total()):
            number = seen.total()
            seen[await _send(port, session(random.Random(f"{seed}/{number}")))] += 1
            if number % _GOOD_EVERY == 0:
                answer = await client.recommend([0], timeout=30)
                assert list(answer.item_ids) == FACTS[0,], f"after session {seed}/{number}"
    return seen


async def _send(port: int, data: bytes) -> str:
    """How the server took it: `closed` the connection, `answered` something, or is `silent`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        writer.write(data)
        async with asyncio.timeout(_REPLY_SECONDS):
            while piece := await reader.read(65536):
                got += piece
    except TimeoutError:
        return "answered" if got else "silent"
    except ConnectionError:
        return "closed"
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return "closed"
