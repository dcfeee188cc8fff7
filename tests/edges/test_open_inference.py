"""The Open Inference Protocol on the port: who may call it, its cost for a token, and its setting."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import grpc
import pytest

from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.open_inference import open_inference_pb2_grpc as oip_grpc
from recommender.security.access import digest_of, new_token
from tests.support.facts import FACTS
from tests.support.inference import infer, rankings
from tests.support.observed import PARENT, TRACE, observing
from tests.support.pages import read
from tests.support.programs import program, run
from tests.support.serving import ServeHere

TIMEOUT = 30.0
TOKEN = new_token()
TOKENS = (("authorization", f"Bearer {TOKEN}"),)
METHODS = [method.name for method in oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
PROBES = ("ServerLive", "ServerReady", "ModelReady")
STREAM = "ModelStreamInfer"
METHOD = "inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(f'[web]\nsha256 = ["{digest_of(TOKEN).hex()}"]\nrequests_per_second = 0.001\nburst = 5\n')
    return path


async def code_of(channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    """The status of a call with an empty message."""
    path = f"/inference.GRPCInferenceService/{method}"
    if method == STREAM:
        streaming: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
        return await streaming(iter([b""]), timeout=TIMEOUT).code()
    unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    return await unary(b"", timeout=TIMEOUT).code()


@pytest.mark.parametrize("needed", [False, True])
async def test_without_a_token_only_health_is_told_and_that_only_where_it_needs_none(
    serve: ServeHere, tokens: Path, *, needed: bool
) -> None:
    async with (
        serve(tokens_file=tokens, health_needs_token=needed) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        codes = {method: await code_of(channel, method) for method in METHODS}

    open_to_all = {method for method, code in codes.items() if code is grpc.StatusCode.OK}
    assert open_to_all == (set() if needed else set(PROBES))
    assert {codes[method] for method in METHODS if method not in open_to_all} == {grpc.StatusCode.UNAUTHENTICATED}


async def test_each_row_is_a_request_of_its_token(serve: ServeHere, tokens: Path) -> None:
    async with (
        serve(tokens_file=tokens) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub: oip_grpc.GRPCInferenceServiceAsyncStub = oip_grpc.GRPCInferenceServiceStub(channel)
        three, one, bad = (infer({"user_history": rows}) for rows in ([[0]] * 3, [[0]], [[-1]]))
        assert rankings(await stub.ModelInfer(three, timeout=TIMEOUT, metadata=TOKENS)) == [FACTS[0,]] * 3
        invalid = stub.ModelInfer(bad, timeout=TIMEOUT, metadata=TOKENS)
        assert await invalid.code() is grpc.StatusCode.INVALID_ARGUMENT
        refused = stub.ModelInfer(three, timeout=TIMEOUT, metadata=TOKENS)
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        streamed = [reply async for reply in stub.ModelStreamInfer(iter([one, one]), timeout=TIMEOUT, metadata=TOKENS)]

    assert [bool(reply.error_message) for reply in streamed] == [False, True]


async def test_a_call_has_its_request_id_its_span_and_a_place_among_the_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metadata = (("x-request-id", "mine"), ("traceparent", f"00-{TRACE}-{PARENT}-01"))
    async with observing(monkeypatch)(metrics_port=0) as (collector, server, channel):
        stub: oip_grpc.GRPCInferenceServiceAsyncStub = oip_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelInfer(infer({"user_history": [[0]]}), timeout=TIMEOUT, metadata=metadata)
        await call
        trailing = list(await call.trailing_metadata())
        scraped = await asyncio.to_thread(read, f"http://127.0.0.1:{server.metrics_port}/metrics")

    assert ("x-request-id", "mine") in trailing
    assert re.search(rf'rpc_server_call_duration_seconds_count\{{[^}}]*rpc_method="{METHOD}"[^}}]*\}} 1', scraped)
    (span,) = collector.named(METHOD)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)


async def test_it_can_be_turned_off(serve: ServeHere) -> None:
    async with (
        serve(open_inference=False) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        assert await code_of(channel, "ServerLive") is grpc.StatusCode.UNIMPLEMENTED
        code, listed, _ = await run(program("grpcurl"), "-plaintext", f"localhost:{server.port}", "list")

    assert code == 0
    assert "inference.GRPCInferenceService" not in listed
