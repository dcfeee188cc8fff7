"""A server's life, from outside: start, readiness, signals, exit codes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recommender.api.metadata import SERVICE_NAME
from recommender.client import Client, Recommendations
from recommender.errors import StartError
from recommender.server.process import ExitCode
from recommender.server.server import Server
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.models import table, write_model
from tests.support.paths import WEIGHTS
from tests.support.process import running
from tests.support.serving import AnyServer, Serve, server_of

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def slow_model(folder: Path) -> Path:
    """A model whose run takes some ten milliseconds, for any number of rows."""
    return write_model(folder / "5_model.onnx", table(), burn=20)


async def health(channel: grpc.aio.Channel, service: str) -> int:
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
    answer = await check(health_pb2.HealthCheckRequest(service=service).SerializeToString(), timeout=TIMEOUT)
    return int(health_pb2.HealthCheckResponse.FromString(answer).status)


@pytest.mark.parametrize(
    ("number", "burst"),
    [(signal.SIGHUP, 64), (signal.SIGINT, 64), (signal.SIGTERM, 1000)],
)
async def test_a_signal_lets_every_accepted_request_finish_and_exits_with_0(
    tmp_path: Path, number: signal.Signals, burst: int, edge: Edge
) -> None:
    settings = {"RECOMMENDER_MODEL": str(slow_model(tmp_path)), "RECOMMENDER_NUM_RECOMMENDATIONS": "5"}
    # Sixty-four runs, so that some are left when the signal arrives: a busy loop may have sixteen of them staged.
    settings |= {"RECOMMENDER_MAX_BATCH_SIZE": str(burst // 64), "RECOMMENDER_EDGE": edge}
    async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        calls = [asyncio.create_task(client.recommend([row % 50], timeout=TIMEOUT)) for row in range(burst)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        server.signal(number)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        code = await server.exit_code()

    waiting = next(event for event in server.log if event["event"] == "draining")["waiting"]
    assert waiting > 0, "the signal came after everything was answered, so nothing was shown"
    assert [answer for answer in answers if not isinstance(answer, Recommendations)] == []
    assert code == 0


async def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, edge: Edge) -> None:
    settings = {"RECOMMENDER_MODEL": str(slow_model(tmp_path)), "RECOMMENDER_NUM_RECOMMENDATIONS": "5"}
    settings |= {"RECOMMENDER_MAX_BATCH_SIZE": "1", "RECOMMENDER_DRAIN_GRACE_MS": "60000", "RECOMMENDER_EDGE": edge}
    async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        calls = [asyncio.create_task(client.recommend([row % 50], timeout=TIMEOUT)) for row in range(1000)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        server.signal(signal.SIGTERM)
        await server.until("draining")
        server.signal(signal.SIGTERM)
        code = await server.exit_code()
        await asyncio.gather(*calls, return_exceptions=True)

    assert code == -signal.SIGTERM


async def test_requests_that_outlast_the_grace_are_given_up_and_the_exit_code_says_so(
    tmp_path: Path, edge: Edge
) -> None:
    settings = {"RECOMMENDER_MODEL": str(slow_model(tmp_path)), "RECOMMENDER_NUM_RECOMMENDATIONS": "5"}
    settings |= {"RECOMMENDER_MAX_BATCH_SIZE": "1", "RECOMMENDER_DRAIN_GRACE_MS": "20", "RECOMMENDER_EDGE": edge}
    async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        calls = [asyncio.create_task(client.recommend([row % 50], timeout=TIMEOUT)) for row in range(64)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        server.signal(signal.SIGTERM)
        code = await server.exit_code()
        answers = await asyncio.gather(*calls, return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert refused
    # gRPC itself cancels calls that have arrived and were not accepted yet.
    assert {error.code() for error in refused} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    # Behind Envoy two processes write the log: the supervisor's line of the signal may come last.
    (stopped,) = (event for event in server.log if event["event"] == "stopped")
    assert stopped["given_up"] > 0
    assert code == 3


async def test_a_port_in_use_is_a_sentence_and_exit_code_2(edge: Edge) -> None:
    settings = {"RECOMMENDER_EDGE": edge}
    async with (
        running(settings=settings) as first,
        running("--port", str(first.port), settings=settings, wait_for=None) as second,
    ):
        code = await second.exit_code()

    assert code == 2
    assert second.text.startswith(f"recommender: cannot listen on 127.0.0.1:{first.port}: the port is in use")
    assert len(second.text.splitlines()) == 1


async def test_a_missing_model_is_a_sentence_that_says_what_exists_and_how_to_make_it(edge: Edge) -> None:
    settings = {"RECOMMENDER_EDGE": edge}
    async with running("--num-recommendations", "7", settings=settings, wait_for=None) as server:
        code = await server.exit_code()

    assert code == ExitCode.NOT_STARTED
    sentence = server.text.splitlines()[-1]
    assert "there is no model file" in sentence
    assert "10_model.onnx, 5_model.onnx" in sentence
    assert "recommender export --num-recommendations 7" in sentence


async def test_health_is_serving_for_the_server_and_for_the_service(server: AnyServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert [await health(channel, name) for name in ("", SERVICE_NAME)] == [SERVING, SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await health(channel, "no.such.Service")
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


async def test_health_turns_first_when_the_server_drains(serve: Serve, tmp_path: Path) -> None:
    model = slow_model(tmp_path)
    async with (
        serve(model=model, num_recommendations=5, max_batch_size=1) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        seen = [(await watch.read()).status]
        served = asyncio.create_task(server.run())
        calls = [asyncio.create_task(client.recommend([row], timeout=TIMEOUT)) for row in range(20)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        seen.append((await watch.read()).status)
        unanswered = sum(not call.done() for call in calls)
        answers = await asyncio.gather(*calls)
        code = await asyncio.wait_for(served, TIMEOUT)
        # An open watch does not delay the stop.
        assert await watch.read() == grpc.aio.EOF

    assert seen == [SERVING, NOT_SERVING]
    assert unanswered > 0
    assert len(answers) == 20
    assert code == ExitCode.DRAINED


async def test_until_the_model_is_warm_the_server_answers_that_it_is_not_serving() -> None:
    server = Server(Settings(port=0, weights_dir=WEIGHTS))
    starting = asyncio.create_task(server.start())
    statuses = []
    while not starting.done():
        if server.port:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                statuses.append(await health(channel, ""))
        await asyncio.sleep(0)
    await starting
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        statuses.append(await health(channel, ""))
    await server.close()

    assert statuses[0] == NOT_SERVING
    assert statuses[-1] == SERVING


async def test_a_server_that_cannot_start_leaves_nothing_behind(tmp_path: Path, edge: Edge) -> None:
    server = server_of(Settings(port=0, weights_dir=tmp_path, edge=edge))
    with pytest.raises(StartError, match="no model file"):
        await server.start()

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            await health(channel, "")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_more_recommendations_than_the_model_has_stop_the_start(tmp_path: Path, edge: Edge) -> None:
    model = write_model(tmp_path / "5_model.onnx", table(items=50))
    with pytest.raises(StartError, match="RECOMMENDER_NUM_RECOMMENDATIONS is 51"):
        await server_of(Settings(port=0, model=model, num_recommendations=51, edge=edge)).start()
