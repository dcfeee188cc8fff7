"""Model queries and streams of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.open_inference import open_inference_pb2_grpc as oip_grpc
from recommender.server.process import ExitCode
from tests.support.following import FOLLOWING, PATIENCE
from tests.support.inference import infer, rankings
from tests.support.serving import AnyServer, Serve, ServeHere, Shared
from tests.support.versions import K, answer_of, write_version

TIMEOUT = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_version(folder / "shop" / "1", 1, keys=50)
    write_version(folder / "other" / "2", 2)
    return folder


@pytest.fixture(scope="module")
def served(shared: Shared, folder: Path) -> AnyServer:
    return shared(model=f"{folder / 'shop'}@1,{folder / 'other'}@2", num_recommendations=K, max_stream_requests=3)


@pytest.fixture
async def stub(served: AnyServer) -> AsyncIterator[oip_grpc.GRPCInferenceServiceAsyncStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        yield stub_of(channel)


def stub_of(channel: grpc.aio.Channel) -> oip_grpc.GRPCInferenceServiceAsyncStub:
    stub: oip_grpc.GRPCInferenceServiceAsyncStub = oip_grpc.GRPCInferenceServiceStub(channel)
    return stub


async def test_the_server_is_live_and_ready_and_tells_what_it_is(stub: oip_grpc.GRPCInferenceServiceAsyncStub) -> None:
    assert (await stub.ServerLive(oip.ServerLiveRequest(), timeout=TIMEOUT)).live
    assert (await stub.ServerReady(oip.ServerReadyRequest(), timeout=TIMEOUT)).ready
    told = await stub.ServerMetadata(oip.ServerMetadataRequest(), timeout=TIMEOUT)
    assert told.name == "recommender"
    assert told.version
    assert set(told.extensions) == {"model_configuration", "model_repository", "statistics"}


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("shop", "", True), ("shop", "1", True), ("other", "2", True), ("shop", "2", False), ("none", "", False)],
)
async def test_models_are_ready_by_name_and_version(
    stub: oip_grpc.GRPCInferenceServiceAsyncStub, name: str, version: str, *, ready: bool
) -> None:
    reply = await stub.ModelReady(oip.ModelReadyRequest(name=name, version=version), timeout=TIMEOUT)

    assert reply.ready == ready


async def test_metadata_and_configuration_name_the_tensors_that_a_model_has(
    stub: oip_grpc.GRPCInferenceServiceAsyncStub,
) -> None:
    told = await stub.ModelMetadata(oip.ModelMetadataRequest(name="shop"), timeout=TIMEOUT)
    config = (await stub.ModelConfig(oip.ModelConfigRequest(name="shop"), timeout=TIMEOUT)).config

    assert (told.name, list(told.versions), told.platform) == ("shop", ["1"], "onnx_onnxv1")
    assert {each.name: (each.datatype, list(each.shape)) for each in told.inputs} == {
        "user_history": ("INT64", [-1, -1]),
        "history_length": ("INT64", [-1, 1]),
        "k": ("INT64", [-1, 1]),
    }
    assert {each.name: (each.datatype, list(each.shape)) for each in told.outputs} == {
        "recommendations": ("INT64", [-1, -1]),
        "scores": ("FP32", [-1, -1]),
        "item_keys": ("BYTES", [-1, -1]),
    }
    assert (config.name, config.platform, config.backend) == ("shop", "onnxruntime_onnx", "onnxruntime")
    assert config.max_batch_size == 1000
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert [(each.name, list(each.dims), each.optional) for each in config.input] == [
        (each.name, list(each.shape[1:]), each.name != "user_history") for each in told.inputs
    ]
    assert [(each.name, list(each.dims)) for each in config.output] == [
        (each.name, list(each.shape[1:])) for each in told.outputs
    ]


async def test_the_index_lists_every_version(stub: oip_grpc.GRPCInferenceServiceAsyncStub) -> None:
    for request in (oip.RepositoryIndexRequest(), oip.RepositoryIndexRequest(ready=True)):
        listed = await stub.RepositoryIndex(request, timeout=TIMEOUT)
        assert [(each.name, each.version, each.state) for each in listed.models] == [
            ("shop", "1", "READY"),
            ("other", "2", "READY"),
        ]


async def test_statistics_count_the_rows_of_calls_by_every_protocol(serve: Serve, folder: Path) -> None:
    async with (
        serve(model=folder / "shop") as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = stub_of(channel)
        await stub.ModelInfer(infer({"user_history": [[1], [2], [3]]}), timeout=TIMEOUT)
        for request in (oip.ModelStatisticsRequest(), oip.ModelStatisticsRequest(name="shop", version="1")):
            (found,) = (await stub.ModelStatistics(request, timeout=TIMEOUT)).model_stats
            stages = found.inference_stats
            assert (found.name, found.version, found.inference_count) == ("shop", "1", 3)
            assert (stages.success.count, stages.queue.count, stages.fail.count) == (3, 3, 0)
            assert sum(size.batch_size * size.compute_infer.count for size in found.batch_stats) == 3
            assert stages.compute_infer.count == found.execution_count
            assert 0 < stages.compute_infer.ns < stages.success.ns


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
async def test_an_unknown_model_is_not_found(stub: oip_grpc.GRPCInferenceServiceAsyncStub, method: str) -> None:
    request = getattr(oip, f"{method}Request")(name="none")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, method)(request, timeout=TIMEOUT)

    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_models_are_neither_loaded_nor_unloaded_by_calls(stub: oip_grpc.GRPCInferenceServiceAsyncStub) -> None:
    for call in (
        stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="shop"), timeout=TIMEOUT),
        stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="shop"), timeout=TIMEOUT),
    ):
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "versions follow their source" in (await call.details() or "")


async def test_a_stream_is_answered_in_order_and_an_error_is_a_reply(
    stub: oip_grpc.GRPCInferenceServiceAsyncStub,
) -> None:
    sent = [infer({"user_history": [[number % 50]] * (1 + number % 3)}, id=str(number)) for number in range(20)]
    sent[7].model_name = "none"
    sent[9].raw_input_contents[0] = b"?"

    replies = [reply async for reply in stub.ModelStreamInfer(iter(sent), timeout=TIMEOUT)]

    assert [reply.infer_response.id for reply in replies] == [str(number) for number in range(20)]
    assert [number for number, reply in enumerate(replies) if reply.error_message] == [7, 9]
    assert "no model 'none' is served" in replies[7].error_message
    assert rankings(replies[4].infer_response) == [list(answer_of(1, (4,)))] * 2


@pytest.mark.parametrize("microseconds", [1, 2**63 - 1])
async def test_a_time_out_of_the_request_shortens_the_deadline(
    stub: oip_grpc.GRPCInferenceServiceAsyncStub, microseconds: int
) -> None:
    request = infer({"user_history": [[1]]})
    request.parameters["timeout"].int64_param = microseconds
    call = stub.ModelInfer(request, timeout=TIMEOUT)
    (reply,) = [reply async for reply in stub.ModelStreamInfer(iter([request]), timeout=TIMEOUT)]

    late = microseconds == 1
    assert await call.code() is (grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.OK)
    assert ("deadline" in reply.error_message) == late


async def test_a_draining_server_is_alive_but_not_ready_and_ends_its_streams(serve: ServeHere, folder: Path) -> None:
    async with (
        serve(model=folder / "shop", drain_wait_ms=50, num_recommendations=K) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = stub_of(channel)
        stream = stub.ModelStreamInfer(timeout=TIMEOUT)
        await stream.write(infer({"user_history": [[1]]}))
        first = await stream.read()
        assert isinstance(first, oip.ModelStreamInferResponse)
        running = asyncio.create_task(server.run())
        server.stop()
        while (await stub.ServerReady(oip.ServerReadyRequest(), timeout=TIMEOUT)).ready:
            pass
        assert (await stub.ServerLive(oip.ServerLiveRequest(), timeout=TIMEOUT)).live
        assert not (await stub.ModelReady(oip.ModelReadyRequest(name="shop"), timeout=TIMEOUT)).ready

        assert await stream.read() is grpc.aio.EOF
        assert await running is ExitCode.DRAINED


async def test_rows_of_one_call_are_answered_by_one_version_beside_a_canary(serve: Serve, folder: Path) -> None:
    write_version(folder / "split" / "1", 1)
    write_version(folder / "split" / "2", 2)
    async with (
        serve(
            model=f"{folder / 'split'}@1",
            candidate=f"{folder / 'split'}@2",
            candidate_mode="canary",
            candidate_share_percent=50,
            **FOLLOWING,
        ) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub, seen = stub_of(channel), set[int]()
        async with asyncio.timeout(PATIENCE):
            while len((await stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))).models) < 2:  # noqa: ASYNC110 (as an operator would look)
                await asyncio.sleep(0.01)
        for number in range(40):
            metadata = (("x-request-id", f"call-{number}"),)
            request = infer({"user_history": [[1], [2], [3], [4]]}, model_name="split" if number % 2 else "")
            reply = await stub.ModelInfer(request, timeout=TIMEOUT, metadata=metadata)
            version = int(reply.model_version)
            assert rankings(reply) == [list(answer_of(version, (item,))) for item in (1, 2, 3, 4)]
            seen.add(version)

    assert seen == {1, 2}
