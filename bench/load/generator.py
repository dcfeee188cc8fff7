"""The load generator: sends the requests of a plan when they are due, and notes when and how each ended.

A separate process (`python -m bench.load.generator PLAN OUTCOMES`) with one thread and no event loop: it sends what is
due, then waits for replies until the next request is. In the open loop a request's time runs from when it was due. So a
server that stalls is charged for all requests due meanwhile, and so is a generator that falls behind. Twice a second it
writes a line of JSON on its progress.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
import select
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt

from bench.load.http2 import UNAVAILABLE, Connection, Ended, Headers, framed, request_headers, unframed
from bench.load.plan import GOOD, HURRIED, LEAVING, LOST, SLOW, Outcomes, Plan
from recommender.recommend_api.v1 import recommend_api_pb2 as api

CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]
_METHODS = {"unary": "Recommend", "batch": "BatchRecommend", "stream": "StreamRecommend"}
_BURST = 64
"""Requests sent in a row before replies are looked for again."""
_SPOKEN_EVERY = 0.5
_LAST_WAIT = 1.0
"""Seconds beyond the deadline that an answer is waited for."""
_RECONNECT_EVERY = 0.1


def arrivals(plan: Plan) -> npt.NDArray[np.float64]:
    """When each request of an open loop is due, in seconds from the start."""
    chance = np.random.default_rng(plan.seed)
    parts, begun = [], 0.0
    for phase in plan.phases:
        count = round((phase.rate + phase.to) / 2 * phase.seconds)
        # Equal steps of expected requests, or exponential ones; the time of each by the rate's integral.
        due = np.arange(count) + 0.5 if plan.arrivals == "even" else np.cumsum(chance.exponential(size=count))
        slope = (phase.to - phase.rate) / phase.seconds
        at = due / phase.rate if slope == 0 else (np.sqrt(phase.rate**2 + 2 * slope * due) - phase.rate) / slope
        parts.append(begun + at[at < phase.seconds])
        begun += phase.seconds
    return np.concatenate(parts)


class Generator:
    """A run of a plan; see the module."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bodies = self._made()
        self._normal = self._headers(plan.timeout)
        self._hurried = self._headers(plan.hurry_ms / 1e3)
        self._patient = self._headers(plan.seconds + 2 * plan.timeout + _LAST_WAIT)
        """Of slow readers, whose deadlines pass only after they read."""
        self._connections = [Connection(plan.target) for _ in range(plan.connections)]
        self._slow = [Connection(plan.target, slow=True) for _ in range(plan.slow)]
        self._streams: dict[int, tuple[Connection, int, set[int]]] = {}
        """Open streams by negative numbers: their connection, their number on it, and the requests without a reply."""
        self._opened = itertools.count(1)
        self._intended: list[float] = []
        self._sent: list[float] = []
        self._done: list[float] = []
        self._status: list[int] = []
        self._kind: list[int] = []
        self._in_flight = 0
        self._failed = 0
        self._row_errors = 0
        self._leaving: list[tuple[float, int, Connection, int]] = []
        """Callers that leave next: time, number, connection, call."""
        self._chance = random.Random(plan.seed)
        self._began = 0.0
        self._spoke = 0.0
        self._reconnected = 0.0
        self._turn = itertools.count()

    def run(self) -> Outcomes:
        """Do it all; raises OSError when the server cannot be reached at the start."""
        plan = self._plan
        due = arrivals(plan).tolist() if plan.open_loop else []
        began = time.process_time()
        self._began = time.monotonic()
        for connection in self._slow:
            for _ in range(plan.slow_calls):
                self._send(0.0, connection, SLOW)
        if plan.open_loop:
            self._open_loop(due)
        else:
            self._closed_loop()
        self._end_streams()
        until = self._now() + plan.timeout + _LAST_WAIT
        slow_ones = sum(kind == SLOW for kind in self._kind)
        while self._in_flight > slow_ones and self._now() < until:
            self._take(0.05)
        for connection in self._slow:
            connection.read_on()
        while self._in_flight > 0 and self._now() < until:
            self._take(0.05)
        used = time.process_time() - began
        for connection in (*self._connections, *self._slow):
            connection.close()
        return Outcomes(
            np.array(self._intended), np.array(self._sent), np.array(self._done),
            np.array(self._status, np.int64), np.array(self._kind, np.int64),
            plan.rows if plan.method == "batch" else 1, self._row_errors,
            used, self._began,
        )  # fmt: skip

    def _open_loop(self, due: list[float]) -> None:
        at, count = 0, len(due)
        while at < count:
            now = self._now()
            last = min(at + _BURST, count)
            while at < last and due[at] <= now:
                self._send(due[at])
                at += 1
            wait = due[at] - self._now() if at < count else 0.0
            self._take(max(wait, 0.0))

    def _closed_loop(self) -> None:
        ends = 0.0
        for phase in self._plan.phases:
            ends += phase.seconds
            while self._now() < ends:
                while self._in_flight < phase.in_flight:
                    self._send(self._now())
                self._take(0.01)

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _send(self, intended: float, connection: Connection | None = None, kind: int = GOOD) -> None:
        plan, caller = self._plan, len(self._status)
        drawn = self._chance.random() if plan.leaving or plan.hurried else 1.0
        if connection is None:
            connection = self._connection()
            kind = LEAVING if drawn < plan.leaving else HURRIED if drawn < plan.leaving + plan.hurried else GOOD
        sent = self._now()
        self._intended.append(intended)
        self._sent.append(sent)
        self._done.append(math.nan)
        self._status.append(LOST)
        self._kind.append(kind)
        self._in_flight += 1
        body = self._bodies[caller % len(self._bodies)]
        if connection is None:
            self._ended(Ended(caller, UNAVAILABLE, b""))
        elif plan.method == "stream" and kind != SLOW:
            self._send_on_stream(connection, caller, body)
        else:
            headers = {HURRIED: self._hurried, SLOW: self._patient}.get(kind, self._normal)
            call = connection.call(headers, body, caller, keep=plan.method == "batch")
            if kind == LEAVING:
                leaves = sent + self._chance.random() * plan.leave_ms / 1e3
                heapq.heappush(self._leaving, (leaves, caller, connection, call))

    def _send_on_stream(self, connection: Connection, caller: int, body: bytes) -> None:
        streams = [each for each in self._streams.values() if each[0] is connection]
        if len(streams) < max(self._plan.streams // self._plan.connections, 1):
            owner = -next(self._opened)
            self._streams[owner] = (connection, connection.open_stream(self._normal, owner), set())
            streams.append(self._streams[owner])
        _, stream, waiting = streams[caller // self._plan.connections % len(streams)]
        waiting.add(caller)
        connection.write(stream, framed(b"\x08" + _varint(caller) + body))

    def _connection(self) -> Connection | None:
        """The next open connection; a lost one is opened again from time to time."""
        place = next(self._turn) % len(self._connections)
        for step in range(len(self._connections)):
            at = (place + step) % len(self._connections)
            if self._connections[at].is_open:
                return self._connections[at]
            now = self._now()
            if now - self._reconnected > _RECONNECT_EVERY:
                self._reconnected = now
                try:
                    fresh = Connection(self._plan.target)
                except OSError:
                    continue
                if self._connections[at].in_flight:
                    self._slow.append(self._connections[at])  # what is under way there is still waited for
                self._connections[at] = fresh
                return fresh
        return None

    def _take(self, wait: float) -> None:
        """Send the buffered bytes, wait that many seconds for replies, and note those that arrived."""
        while self._leaving and self._leaving[0][0] <= self._now():
            _, caller, connection, call = heapq.heappop(self._leaving)
            if connection.cancel(call):
                self._ended(Ended(caller, CANCELLED, b""))
        if self._leaving:
            wait = min(wait, max(self._leaving[0][0] - self._now(), 0.0))
        for connection in self._readable(min(wait, 0.1)):
            ended = connection.receive()
            now = self._now()
            for each in ended:
                if each.caller >= 0:
                    self._ended(each, now)
                else:
                    self._stream_ended(each, now)
            if self._plan.method == "stream":
                self._read_streams(connection, now)
        if self._now() - self._spoke > _SPOKEN_EVERY:
            self._speak()

    def _readable(self, wait: float) -> list[Connection]:
        """Send the buffered bytes; returns the connections with input within `wait`."""
        connections = [*self._connections, *self._slow]
        for connection in connections:
            if connection.has_output:
                connection.flush()
        alive = [connection for connection in connections if connection.is_open or connection.in_flight]
        if not alive:
            time.sleep(min(wait, 0.01))
            return []
        full = [connection for connection in alive if connection.has_output]
        readable: list[Connection] = select.select(alive, full, [], wait)[0]
        return readable

    def _read_streams(self, connection: Connection, now: float) -> None:
        for where, stream, waiting in self._streams.values():
            if where is connection:
                self._replies(connection.messages(stream), waiting, now)

    def _replies(self, messages: Iterable[bytes], waiting: set[int], now: float) -> None:
        for message in messages:
            reply = api.StreamRecommendResponse.FromString(message)
            waiting.discard(reply.correlation_id)
            status = reply.error.code if reply.WhichOneof("outcome") == "error" else 0
            self._ended(Ended(reply.correlation_id, status, b""), now)

    def _stream_ended(self, ended: Ended, now: float) -> None:
        _, _, waiting = self._streams.pop(ended.caller)
        self._replies(unframed(bytearray(ended.body)), waiting, now)
        for caller in waiting:
            self._ended(Ended(caller, ended.status or UNAVAILABLE, b""), now)

    def _end_streams(self) -> None:
        for connection, stream, _ in self._streams.values():
            connection.write(stream, b"", last=True)

    def _ended(self, ended: Ended, now: float | None = None) -> None:
        if self._status[ended.caller] != LOST:
            return
        self._done[ended.caller] = self._now() if now is None else now
        status = ended.status
        if ended.body and self._plan.method == "batch" and status == 0:
            refused = [
                result.error.code
                for result in api.BatchRecommendResponse.FromString(ended.body[5:]).results
                if result.WhichOneof("outcome") == "error"
            ]
            self._row_errors += len(refused)
            status = refused[0] if refused else 0
        self._status[ended.caller] = status
        self._in_flight -= 1
        self._failed += status != 0

    def _made(self) -> list[bytes]:
        requests = [api.RecommendRequest(item_ids=history) for history in self._plan.histories()]
        if self._plan.method == "unary":
            return [framed(request.SerializeToString()) for request in requests]
        if self._plan.method == "stream":
            timeout = max(round(self._plan.timeout * 1e3), 1)
            return [
                api.StreamRecommendRequest(request=request, timeout_ms=timeout).SerializeToString()
                for request in requests
            ]
        rows = self._plan.rows
        whole = requests * math.ceil(rows / len(requests))
        batches = (whole[at : at + rows] for at in range(0, len(whole) - rows + 1, rows))
        return [framed(api.BatchRecommendRequest(requests=batch).SerializeToString()) for batch in batches]

    def _headers(self, timeout: float) -> Headers:
        plan = self._plan
        authorization = (("authorization", f"Bearer {plan.token}"),) if plan.token else ()
        timeout = plan.seconds + 60 if plan.method == "stream" else timeout
        return request_headers(plan.target, _METHODS[plan.method], timeout, authorization)

    def _speak(self) -> None:
        self._spoke = self._now()
        told = {"seconds": self._spoke, "sent": len(self._sent), "in_flight": self._in_flight, "failed": self._failed}
        print(json.dumps(told), flush=True)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def main() -> None:
    plan, outcomes = map(Path, sys.argv[1:])
    Generator(Plan.read(plan)).run().write(outcomes)


if __name__ == "__main__":
    main()
