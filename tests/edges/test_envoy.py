"""Behind a real Envoy with the committed configuration: restarts and deaths that callers do not notice."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path

import grpc
import pytest

from recommender.api.metadata import PUSHBACK_KEY, SERVICE_NAME
from recommender.client import Client
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.balanced import CONFIG, TIMEOUT, envoy, fleet, load
from tests.support.facts import FACTS
from tests.support.models import table, write_model
from tests.support.programs import program
from tests.support.serving import Serve
from tests.support.storms import nearly_all_leave


async def test_the_committed_configuration_is_one_that_envoy_takes() -> None:
    process = await asyncio.create_subprocess_exec(
        program("envoy"), "--mode", "validate", "-c", str(CONFIG), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, err = await asyncio.wait_for(process.communicate(), TIMEOUT)

    assert process.returncode == 0, err.decode()


async def test_calls_of_every_kind_go_through_with_metadata_both_ways(serve: Serve, tmp_path: Path) -> None:
    async with serve() as server, envoy([server.port], tmp_path) as proxy, Client(f"127.0.0.1:{proxy.port}") as client:
        answer = await client.recommend([0], timeout=TIMEOUT, request_id="mine")
        many = await client.recommend_many([api.RecommendRequest(item_ids=[0])] * 3, timeout=TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.recommend([-1], timeout=TIMEOUT)

    assert (list(answer.item_ids), answer.request_id) == (FACTS[0,], "mine")
    assert len(many) == 3
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "grpc-status-details-bin" in dict(refused.value.trailing_metadata())


async def test_a_connection_whose_callers_nearly_all_leave_serves_those_who_stay(serve: Serve, tmp_path: Path) -> None:
    async with serve(max_backlog=10_000) as server, envoy([server.port], tmp_path) as proxy:
        right, codes = await nearly_all_leave(proxy.port)

    assert right == 40
    assert set(codes) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
    assert codes[grpc.StatusCode.CANCELLED] > 1500


async def test_pushback_reaches_the_caller_and_envoy_does_not_retry_for_him(serve: Serve, tmp_path: Path) -> None:
    model = write_model(tmp_path / "5_model.onnx", table(), burn=50)
    async with (
        serve(model=model, num_recommendations=5, max_batch_size=1, max_backlog=1) as server,
        envoy([server.port], tmp_path) as proxy,
        grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}", (("grpc.enable_retries", 0),)) as channel,
    ):
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE_NAME}/Recommend")
        calls = [method(api.RecommendRequest(item_ids=[row]).SerializeToString(), timeout=TIMEOUT) for row in range(8)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        seen = server.batcher.statistics()

    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert refused
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(PUSHBACK_KEY in dict(error.trailing_metadata()) for error in refused)
    assert seen.refused_full == len(refused), "each was tried once"


@pytest.mark.long
async def test_a_rolling_restart_of_three_servers_under_load_fails_no_call(tmp_path: Path) -> None:
    async with (
        fleet() as servers,
        envoy(servers.ports, tmp_path) as proxy,
        load(f"127.0.0.1:{proxy.port}") as seen,
    ):
        codes = []
        for port in servers.ports:
            codes.append(await servers.stop(port, signal.SIGTERM))
            await servers.start(port)
            await proxy.until_healthy(set(servers.ports))

    assert codes == [0, 0, 0]
    assert seen.failed == 0, seen.outcomes
    assert seen.outcomes["answered"] > 100


@pytest.mark.long
async def test_a_server_that_is_killed_costs_its_open_calls_at_most_and_envoy_saves_those(tmp_path: Path) -> None:
    async with (
        fleet() as servers,
        envoy(servers.ports, tmp_path) as proxy,
        load(f"127.0.0.1:{proxy.port}") as seen,
    ):
        for port in servers.ports:
            open_calls = seen.open
            before = seen.failed
            await servers.stop(port, signal.SIGKILL)
            await proxy.until_healthy(set(servers.ports) - {port})
            assert seen.failed - before <= open_calls, seen.outcomes
            await servers.start(port)
            await proxy.until_healthy(set(servers.ports))

    assert seen.failed == 0, f"Envoy tries again what was lost on the way: {seen.outcomes}"


async def test_a_client_shares_its_calls_out_over_addresses_by_itself_and_misses_none_that_leaves() -> None:
    async with fleet(2) as servers:
        first, second = servers.ports
        target = f"ipv4:127.0.0.1:{first},127.0.0.1:{second}"
        config = json.dumps(
            {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": SERVICE_NAME}}
        )
        async with load(target, callers=4, service_config=config) as seen:
            await seen.until(50)
            code = await servers.stop(first, signal.SIGTERM)
            await seen.until(seen.outcomes.total() + 50)
        await servers.stop(second, signal.SIGTERM)
        answered = [server.log[-1]["answered"] for server in servers.servers.values()]

    assert code == 0
    assert seen.failed == 0, seen.outcomes
    assert all(count >= 20 for count in answered), answered
