"""Many requests in one call or on one stream: each has its own outcome."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from recommender.client import Client, Recommendations, Refusal, Request
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.server.process import ExitCode
from tests.support.facts import FACTS
from tests.support.models import table, write_model
from tests.support.serving import AnyServer, Serve
from tests.support.statuses import status_of_call, violations_of
from tests.support.versions import UNTRIED, K, answer_of, write_version

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0


def stub_of(channel: grpc.aio.Channel) -> api_grpc.RecommenderServiceAsyncStub:
    stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(channel)
    return stub


def ids(outcome: Recommendations | Refusal) -> list[int]:
    assert isinstance(outcome, Recommendations), outcome
    return list(outcome.item_ids)


async def all_of(*requests: Request) -> AsyncIterator[Request]:
    for request in requests:
        yield request


async def test_a_batch_call_answers_in_order_in_fewer_runs_than_requests(server: AnyServer, client: Client) -> None:
    histories = [*FACTS] * 50
    before = sum(server.batcher.statistics().batches.values())

    outcomes = await client.recommend_many((Request(item_ids=ids) for ids in histories), timeout=TIMEOUT)

    assert [ids(outcome) for outcome in outcomes] == [FACTS[history] for history in histories]
    assert sum(server.batcher.statistics().batches.values()) - before < len(histories) / 10


async def test_a_history_that_the_model_answers_with_nan_fails_alone(serve: Serve, tmp_path: Path) -> None:
    write_version(tmp_path / "shop" / "1", 1, flaws={UNTRIED: math.nan})
    histories = [[1, 2], [3, UNTRIED], [4]]
    async with serve(model=tmp_path / "shop") as server, Client(f"127.0.0.1:{server.port}") as client:
        outcomes = await client.recommend_many(
            (Request(item_ids=history, limit=K) for history in histories), timeout=TIMEOUT
        )
        with pytest.raises(grpc.aio.AioRpcError) as alone:
            await client.recommend([UNTRIED], timeout=TIMEOUT)

    first, failed, last = outcomes
    assert [ids(outcome) for outcome in (first, last)] == [list(answer_of(1, history)) for history in ((1, 2), (4,))]
    assert isinstance(failed, Refusal)
    assert failed.code is alone.value.code() is grpc.StatusCode.INTERNAL


async def test_a_bad_request_in_a_batch_call_fails_alone_with_the_status_of_a_call_of_its_own(
    server: AnyServer,
) -> None:
    good, bad = Request(item_ids=[0]), Request(item_ids=[1, -2])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = stub_of(channel)
        response = await stub.BatchRecommend(api.BatchRecommendRequest(requests=[good, bad, good]), timeout=TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError) as alone:
            await stub.Recommend(bad, timeout=TIMEOUT)

    outcomes = [result.WhichOneof("outcome") for result in response.results]
    assert outcomes == ["response", "error", "response"]
    assert response.results[1].error == status_of_call(alone.value)
    assert list(violations_of(response.results[1].error)) == ["item_ids[1]"]


async def test_an_empty_batch_call_gets_an_empty_answer(client: Client) -> None:
    assert await client.recommend_many([], timeout=TIMEOUT) == []


async def test_a_batch_call_over_the_limit_is_refused_as_a_whole(serve: Serve) -> None:
    async with serve(max_batch_requests=2) as server, Client(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.recommend_many([Request(item_ids=[1])] * 3, timeout=TIMEOUT)

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations_of(status_of_call(refused.value)) == {"requests": "a call may have 2 requests, and this has more"}


async def test_rows_of_a_batch_call_beyond_the_backlog_are_refused_each_by_itself(serve: Serve) -> None:
    async with (
        serve(max_backlog=4, max_batch_size=8) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        outcomes = await client.recommend_many([Request(item_ids=[1])] * 8, timeout=TIMEOUT)

    answered = [outcome for outcome in outcomes if isinstance(outcome, Recommendations)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert len(answered) == 4
    assert {refusal.code for refusal in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_a_single_caller_does_not_wait_behind_a_call_of_a_thousand_rows(serve: Serve, tmp_path: Path) -> None:
    model = write_model(tmp_path / "5_model.onnx", table(), burn=5)
    async with (
        serve(model=model, num_recommendations=5, max_batch_size=4) as server,
        Client(f"127.0.0.1:{server.port}") as many,
        Client(f"127.0.0.1:{server.port}") as single,
    ):
        crowd = asyncio.create_task(many.recommend_many([Request(item_ids=[1])] * 1000, timeout=TIMEOUT))
        await single.recommend([3], timeout=TIMEOUT)  # by now the crowd has arrived
        meanwhile = []
        for _ in range(5):  # what else the machine does only adds to what is counted
            before = server.batcher.statistics().rows_run
            await single.recommend([2], timeout=TIMEOUT)
            meanwhile.append(server.batcher.statistics().rows_run - before)
        assert not crowd.done()
        crowd.cancel()

    assert min(meanwhile) <= 4 * 4


async def test_a_stream_answers_every_request_with_its_id(client: Client) -> None:
    histories = [*FACTS] * 100
    random.Random(5).shuffle(histories)

    answers = {
        place: ids(outcome)
        async for place, outcome in client.stream(
            all_of(*(Request(item_ids=history) for history in histories)), timeout=TIMEOUT
        )
    }

    assert answers == {place: FACTS[history] for place, history in enumerate(histories)}


async def test_a_bad_request_on_a_stream_fails_alone(client: Client) -> None:
    requests = all_of(Request(item_ids=[0]), Request(item_ids=[-1]), Request(limit=1), Request(item_ids=[0]))

    outcomes = dict([answer async for answer in client.stream(requests, timeout=TIMEOUT)])

    assert ids(outcomes[0]) == ids(outcomes[3]) == FACTS[0,]
    for place in (1, 2):
        refusal = outcomes[place]
        assert isinstance(refusal, Refusal)
        assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_on_a_stream_is_late_by_its_own_timeout(serve: Serve, tmp_path: Path) -> None:
    model = write_model(tmp_path / "5_model.onnx", table(), burn=40)
    async with (
        serve(model=model, num_recommendations=5, max_batch_size=1) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        messages = [
            api.StreamRecommendRequest(
                correlation_id=place, request=Request(item_ids=[1]), timeout_ms=1 if place == 5 else 30_000
            )
            for place in range(6)
        ]
        replies = {reply.correlation_id: reply async for reply in stub_of(channel).StreamRecommend(iter(messages))}

    outcomes = [replies[place].WhichOneof("outcome") for place in range(6)]
    assert outcomes == [*["response"] * 5, "error"]
    assert replies[5].error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_a_timeout_out_of_range_is_that_message_s_own_fault(server: AnyServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        message = api.StreamRecommendRequest(correlation_id=9, request=Request(item_ids=[-1]), timeout_ms=-4)
        (reply,) = [reply async for reply in stub_of(channel).StreamRecommend(iter([message]))]

    assert list(violations_of(reply.error)) == ["request.item_ids[0]", "timeout_ms"]


@pytest.mark.parametrize("timeout_ms", [-1, 3_600_001])
async def test_a_timeout_out_of_range_is_seen_where_the_request_is_plain(server: AnyServer, timeout_ms: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        messages = [
            api.StreamRecommendRequest(correlation_id=place, request=Request(item_ids=[1]), timeout_ms=each)
            for place, each in enumerate([3_600_000, timeout_ms])
        ]
        replies = {reply.correlation_id: reply async for reply in stub_of(channel).StreamRecommend(iter(messages))}

    assert replies[0].WhichOneof("outcome") == "response"
    assert list(violations_of(replies[1].error)) == ["timeout_ms"]


async def test_nonsense_on_a_stream_ends_it_with_invalid_argument(server: AnyServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        raw: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/recommend_api.v1.RecommenderService/StreamRecommend"
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in raw(iter([b"\xff\xff\xff"])):
                pass

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_whose_replies_nobody_reads_is_read_no_further(serve: Serve) -> None:
    async with (
        serve(max_stream_requests=16) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        Client(f"127.0.0.1:{server.port}") as other,
    ):
        call = stub_of(channel).StreamRecommend()
        # Large replies fill the flow-control window after a few; then writing is what waits.
        message = api.StreamRecommendRequest(request=Request(item_ids=[1], limit=1000))
        writer = asyncio.create_task(write_for_ever(call, message))
        growth = [await answered_meanwhile(server, other)]
        while growth[-1] and len(growth) < 300:
            growth.append(await answered_meanwhile(server, other))
        writer.cancel()
        call.cancel()

    assert sum(growth) > 0
    assert growth[-1] == 0


async def answered_meanwhile(server: AnyServer, other: Client) -> int:
    """How many requests of others are answered in the time that fifty calls take."""
    before = server.batcher.statistics().answered
    for _ in range(50):
        await other.recommend([1], timeout=TIMEOUT)
    return server.batcher.statistics().answered - before - 50


async def write_for_ever(
    call: grpc.aio.StreamStreamCall[api.StreamRecommendRequest, api.StreamRecommendResponse],
    message: api.StreamRecommendRequest,
) -> None:
    while True:
        await call.write(message)


async def test_a_stream_that_is_cancelled_leaves_nothing_behind(serve: Serve, tmp_path: Path) -> None:
    model = write_model(tmp_path / "5_model.onnx", table(), burn=20)
    async with (
        serve(model=model, num_recommendations=5, max_batch_size=1) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        call = stub_of(channel).StreamRecommend()
        for place in range(50):
            await call.write(api.StreamRecommendRequest(correlation_id=place, request=Request(item_ids=[1])))
        await call.read()
        call.cancel()
        await asyncio.wait_for(server.batcher.drain(), TIMEOUT)
        statistics = server.batcher.statistics()

    assert statistics.cancelled > 0
    assert (statistics.waiting, statistics.running) == (0, 0)
    assert statistics.answered + statistics.cancelled <= 50


async def test_on_drain_a_stream_answers_what_it_has_read_and_ends(serve: Serve, tmp_path: Path) -> None:
    model = write_model(tmp_path / "5_model.onnx", table(), burn=20)
    async with (
        serve(model=model, num_recommendations=5, max_batch_size=4, default_timeout_ms=60_000) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        served = asyncio.create_task(server.run())
        call = stub_of(channel).StreamRecommend()
        for place in range(40):
            await call.write(api.StreamRecommendRequest(correlation_id=place, request=Request(item_ids=[1])))
        replies = [await call.read()]
        server.stop()
        while isinstance(reply := await call.read(), api.StreamRecommendResponse):
            replies.append(reply)
        code = await call.code()
        exit_code = await asyncio.wait_for(served, TIMEOUT)
        statistics = server.batcher.statistics()

    assert code == grpc.StatusCode.OK
    assert exit_code == ExitCode.DRAINED
    assert len(replies) == statistics.answered
    assert {reply.WhichOneof("outcome") for reply in replies if isinstance(reply, api.StreamRecommendResponse)} == {
        "response"
    }


async def test_the_client_takes_the_largest_reply_of_the_default_limits(client: Client) -> None:
    outcomes = await client.recommend_many([Request(item_ids=[0], limit=1000)] * 1000, timeout=TIMEOUT)

    assert [len(ids(outcome)) for outcome in outcomes] == [1000] * 1000


async def test_a_call_whose_reply_would_be_too_large_is_refused_before_anything_is_ranked(
    server: AnyServer, client: Client
) -> None:
    before = server.batcher.statistics().answered
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.recommend_many([Request(item_ids=[0], limit=10_000)] * 1000, timeout=TIMEOUT)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "90 MB" in (refused.value.details() or "")
    assert server.batcher.statistics().answered == before
