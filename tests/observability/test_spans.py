"""The spans of a server's calls and batches, with their family and links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import use_span

from recommender.client import Client
from recommender.client import Request as ClientRequest
from recommender.observability import instruments as telemetry
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.collector import attributes
from tests.support.models import table, write_model
from tests.support.observed import METHOD, PARENT, TIMEOUT, TRACE, Observed, recommend


async def test_a_call_is_a_span_in_its_callers_trace_with_its_queue_and_its_run(observed: Observed) -> None:
    async with observed() as (collector, server, channel):
        await recommend(channel, ("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "mine"))

    (call,) = collector.named(METHOD)
    (queue,) = collector.named("queue")
    (run,) = collector.named("run")
    (batch,) = collector.named("batch")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.kind == Span.SPAN_KIND_SERVER
    assert call.status.code == Status.STATUS_CODE_UNSET
    for child in (queue, run):
        assert (child.trace_id, child.parent_span_id) == (call.trace_id, call.span_id)
    assert call.start_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano
    assert abs(run.start_time_unix_nano - queue.end_time_unix_nano) < 1e6
    assert run.end_time_unix_nano <= call.end_time_unix_nano

    said = attributes(call.attributes)
    waited, ran = said.pop(telemetry.WAIT), said.pop(telemetry.RUN)
    assert isinstance(waited, float)
    assert isinstance(ran, float)
    assert 0 < waited + ran < (call.end_time_unix_nano - call.start_time_unix_nano) / 1e9
    assert str(said.pop("rpc.user_agent")).startswith("grpc-python-asyncio/")
    assert said.pop("net.peer.port")
    assert said == {
        "rpc.system": "grpc",
        "rpc.service": METHOD.rpartition("/")[0],
        "rpc.grpc.status_code": 0,
        "net.peer.ip": "127.0.0.1",
        "net.peer.name": "localhost",
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
        "recommender.request_id": "mine",
        "recommender.model.name": "reference",
        "recommender.model.version": "1",
        "recommender.batch.id": 1,
        "recommender.batch.size": 1,
        "recommender.batch.count": 1,
    }
    assert batch.trace_id != call.trace_id, "a batch belongs to none of its callers"
    assert [(link.trace_id, link.span_id) for link in batch.links] == [(call.trace_id, call.span_id)]
    assert [(link.trace_id, link.span_id) for link in run.links] == [(batch.trace_id, batch.span_id)]
    assert attributes(batch.attributes) | {"recommender.batch.cells": 1} == attributes(batch.attributes)
    assert collector.resource["service.name"] == "recommender"
    assert server.metrics_port == 0


async def test_a_caller_s_trace_that_is_not_sampled_has_no_span_and_a_malformed_one_is_left(observed: Observed) -> None:
    malformed = ("x", f"ff-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01, 00-{TRACE[::-1]}-{PARENT[::-1]}-01")
    async with observed() as (collector, _, channel):
        for traceparent in (f"00-{TRACE}-{PARENT}-00", *malformed):
            await recommend(channel, ("traceparent", traceparent))

    calls = collector.named(METHOD)
    assert len(calls) == len(malformed)
    assert {call.parent_span_id for call in calls} == {b""}
    assert TRACE not in {call.trace_id.hex() for call in calls}


async def test_a_batch_links_to_every_sampled_call_in_it_and_to_no_other(observed: Observed) -> None:
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    async with observed(sampler) as (collector, server, channel):
        parents = [(f"{row + 1:032x}", row % 2) for row in range(64)]
        await asyncio.gather(
            *(recommend(channel, ("traceparent", f"00-{trace}-{PARENT}-0{flag}")) for trace, flag in parents),
            *(recommend(channel) for _ in range(10)),
        )
        statistics = server.batcher.statistics()

    wanted = {trace for trace, flag in parents if flag}
    calls = {span.span_id: span for span in collector.named(METHOD)}
    assert sorted(span.trace_id.hex() for span in calls.values()) == sorted(wanted)
    links = [link.span_id for batch in collector.named("batch") for link in batch.links]
    assert sorted(links) == sorted(calls)
    for batch in collector.named("batch"):
        about = attributes(batch.attributes)
        for link in batch.links:
            call = attributes(calls[link.span_id].attributes)
            assert call["recommender.batch.id"] == about["recommender.batch.id"]
            assert call["recommender.batch.size"] == about["recommender.batch.size"]
    assert statistics.answered == 74


async def test_a_ratio_samples_about_that_many_and_the_rest_leaves_no_span(observed: Observed) -> None:
    variables = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    async with observed(variables) as (collector, _, channel):
        for _ in range(4):
            await asyncio.gather(*(recommend(channel) for _ in range(100)))

    calls = collector.named(METHOD)
    assert 60 < len(calls) < 140
    assert len({span.trace_id for span in calls}) == len(calls)
    assert all(int.from_bytes(span.trace_id[8:], "big") < 0.25 * 2**64 for span in calls)
    assert len(collector.named("run")) == len(calls)


async def test_a_call_of_many_has_a_run_for_each_of_its_batches(observed: Observed) -> None:
    async with observed(max_batch_size=8) as (collector, server, _), Client(f"127.0.0.1:{server.port}") as client:
        await client.recommend_many([ClientRequest(item_ids=[row]) for row in range(40)], timeout=TIMEOUT)

    (call,) = collector.named("recommend_api.v1.RecommenderService/BatchRecommend")
    batches = collector.named("batch")
    assert attributes(call.attributes)["recommender.batch.count"] == len(batches) >= 5
    assert len(collector.named("run")) == len(collector.named("queue")) == len(batches)
    assert all([link.span_id for link in batch.links] == [call.span_id] for batch in batches)


async def test_a_span_around_the_start_of_a_server_is_no_part_of_its_calls(observed: Observed) -> None:
    around = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("around")
    with use_span(around):
        async with observed({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}) as (collector, _, channel):
            await recommend(channel)

    assert not collector.spans
    assert isinstance(around, ReadableSpan)
    assert not around.attributes


async def test_a_call_that_fails_says_so(observed: Observed) -> None:
    async with observed() as (collector, _, channel):
        with pytest.raises(grpc.aio.AioRpcError):
            await recommend(channel, item=-1)

    (call,) = collector.named(METHOD)
    said = attributes(call.attributes)
    assert (said["rpc.response.status_code"], said["rpc.grpc.status_code"]) == ("INVALID_ARGUMENT", 3)
    assert "error.type" not in said, "the caller's fault is no error of the server"
    assert call.status.code == Status.STATUS_CODE_UNSET
    assert not call.events, "a status is no exception"
    assert not collector.named("batch")


async def test_a_call_that_fails_by_our_fault_is_an_error(observed: Observed) -> None:
    async with observed() as (collector, server, channel):
        await server.batcher.close()
        with pytest.raises(grpc.aio.AioRpcError):
            await recommend(channel)

    (call,) = collector.named(METHOD)
    said = attributes(call.attributes)
    assert (said["error.type"], said["rpc.grpc.status_code"]) == ("UNAVAILABLE", 14)
    assert call.status.code == Status.STATUS_CODE_ERROR
    assert not call.events


async def test_a_stream_is_a_span_and_its_runs_are_in_it(observed: Observed) -> None:
    async def requests() -> AsyncIterator[ClientRequest]:
        for row in range(3):
            yield ClientRequest(item_ids=[row])

    async with observed() as (collector, server, _), Client(f"127.0.0.1:{server.port}") as client:
        assert len([answer async for answer in client.stream(requests(), timeout=TIMEOUT)]) == 3

    (call,) = collector.named("recommend_api.v1.RecommenderService/StreamRecommend")
    assert attributes(call.attributes)["rpc.response.status_code"] == "OK"
    assert {run.parent_span_id for run in collector.named("run")} == {call.span_id}


async def test_a_call_whose_caller_leaves_is_cancelled_by_both_names(observed: Observed, tmp_path: Path) -> None:
    slow = write_model(tmp_path / "5_model.onnx", table(), burn=60)
    settings: dict[str, Any] = {"model": slow, "num_recommendations": 5, "max_batch_size": 1}
    async with observed({"OTEL_BSP_SCHEDULE_DELAY": "20"}, **settings) as (collector, _, channel):
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/recommend_api.v1.RecommenderService/StreamRecommend"
        )
        call = stream(timeout=TIMEOUT)
        message = api.StreamRecommendRequest(request=api.RecommendRequest(item_ids=[1])).SerializeToString()
        for _ in range(2):
            await call.write(message)
        await call.read()
        call.cancel()  # while the second one runs: gRPC may report a cancellation as the end of the requests first
        await asyncio.to_thread(
            collector.until, lambda: collector.named("recommend_api.v1.RecommenderService/StreamRecommend")
        )

    (span,) = collector.named("recommend_api.v1.RecommenderService/StreamRecommend")
    said = attributes(span.attributes)
    assert (said["rpc.response.status_code"], said["rpc.grpc.status_code"]) == ("CANCELLED", 1)
    assert span.status.code == Status.STATUS_CODE_UNSET
