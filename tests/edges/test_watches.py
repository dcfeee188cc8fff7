"""Health for callers: watchers that do not read delay no other call, and a malformed message gets a status."""

from __future__ import annotations

import asyncio
import signal

import grpc
import h2.events
import h2.settings
import pytest
from grpc_health.v1 import health_pb2

from recommender.edges.health import Health
from recommender.edges.method import Messages, Streaming
from recommender.settings.network import Edge
from tests.support.process import running
from tests.support.raw import HEADERS, raw
from tests.support.serving import AnyServer

TIMEOUT = 30.0
GRACE = 10.0
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def request() -> Messages:
    yield b""


def watch_of(health: Health) -> Streaming:
    (watch,) = (method for method in health.methods() if isinstance(method, Streaming))
    return watch


async def test_a_watcher_that_reads_slowly_gets_the_latest_status() -> None:
    health = Health(("",))
    read = asyncio.Semaphore(0)
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def send(status: health_pb2.HealthCheckResponse) -> None:
        await read.acquire()
        await seen.put(status.status)

    async with asyncio.timeout(TIMEOUT):
        watching = asyncio.ensure_future(watch_of(health).serve(request(), send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        for serving in (True, False, True):
            health.turn(serving=serving)
        for _ in range(2):
            read.release()
        assert [await seen.get(), await seen.get()] == [NOT_SERVING, SERVING]
        health.end_watches()
        await watching

    assert seen.empty()


async def test_a_watcher_that_does_not_read_is_dropped_when_watches_end() -> None:
    health = Health(("",))

    async def send(*_: object) -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(TIMEOUT):
        watching = asyncio.ensure_future(watch_of(health).serve(request(), send))
        await asyncio.sleep(0)
        health.end_watches()
        health.end_watches()
        await watching


async def test_a_watcher_of_a_name_that_is_not_here_leaves_with_the_others() -> None:
    health = Health(("",))
    seen: list[int] = []

    async def request_for_nobody() -> Messages:
        yield health_pb2.HealthCheckRequest(service="nobody").SerializeToString()

    async def send(status: health_pb2.HealthCheckResponse) -> None:
        seen.append(status.status)

    async with asyncio.timeout(TIMEOUT):
        watching = asyncio.ensure_future(watch_of(health).serve(request_for_nobody(), send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        health.end_watches()
        await watching

    assert seen == [health_pb2.HealthCheckResponse.SERVICE_UNKNOWN]


async def test_a_server_that_left_never_serves_again() -> None:
    health = Health(("",))
    health.leave()
    health.turn(serving=True)
    health.end_watches()
    seen: list[int] = []

    async def send(status: health_pb2.HealthCheckResponse) -> None:
        seen.append(status.status)

    await watch_of(health).serve(request(), send)  # type: ignore[arg-type]

    assert seen == [NOT_SERVING]


@pytest.mark.both_edges
async def test_watchers_with_a_closed_window_delay_neither_start_nor_drain(edge: Edge) -> None:
    settings = {"RECOMMENDER_EDGE": edge, "RECOMMENDER_DRAIN_GRACE_MS": str(int(GRACE * 1e3))}
    settings["RECOMMENDER_HEALTH_PORT"] = "0"
    async with running(settings=settings, wait_for="listening") as server:
        (probes,) = (event["port"] for event in server.log if event["event"] == "probes")
        async with raw(server.port) as caller, raw(probes) as orchestrator:
            for watcher in (caller, orchestrator):
                watcher.http2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
                stream = watcher.http2.get_next_available_stream_id()
                headers = [(name, WATCH if name == ":path" else value) for name, value in HEADERS]
                watcher.http2.send_headers(stream, headers)
                watcher.http2.send_data(stream, bytes(5), end_stream=True)
                await watcher.flush()
                await watcher.until(h2.events.ResponseReceived)
            await server.until("ready")
            for port in (server.port, probes):
                async with raw(port) as other:
                    assert await other.status(await other.call(CHECK, b"")) == 0
            server.signal(signal.SIGTERM)
            async with asyncio.timeout(TIMEOUT):
                code = await server.exit_code()

    assert code == 0
    (stopped,) = (event for event in server.log if event["event"] == "stopped")
    assert stopped["seconds"] < GRACE / 2


@pytest.mark.both_edges
@pytest.mark.parametrize("path", [CHECK, WATCH, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"])
async def test_a_malformed_message_gets_the_same_status_on_every_service(server: AnyServer, path: str) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(b"\x08\xff", timeout=TIMEOUT)

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
