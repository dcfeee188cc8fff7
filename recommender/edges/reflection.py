"""gRPC server reflection, v1 and v1alpha, with the proto's comments in it.

The library describes generated code, which has lost the comments. Here our descriptors are served as
`protoc --include_source_info` wrote them, so `grpcurl describe` shows what each field means. v1 is v1alpha
under another name (grpc/grpc `reflection.proto`) and made from it.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from recommender.api.messages import decoded
from recommender.edges.method import Enter, Messages, Method, Send, Streaming

_V1ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
_METHOD = "ServerReflectionInfo"
_MOST_ECHOED_BYTES = 1024
"""A longer request is not repeated in its answer, as it otherwise is."""
NAMES = (f"{_V1ALPHA}.ServerReflection", f"{_V1}.ServerReflection")


class Reflection:
    """Describes these services and itself: the library's answers, with our descriptors in them."""

    def __init__(self, service_names: tuple[str, ...]) -> None:
        files = _described_files()
        pool = descriptor_pool.DescriptorPool()
        for file in files.values():
            pool.AddSerializedFile(file)
        # The library's stubs say that it returns a coroutine; it is an async generator.
        self._answers: Any = reflection.aio.ReflectionServicer((*service_names, *NAMES), pool=pool)
        self._files = files

    def methods(self, enter: Enter | None = None) -> tuple[Method, ...]:
        """Return the RPC of both versions; `enter` checks a token."""
        return tuple(Streaming(path=f"/{name}/{_METHOD}", serve=self._serve, enter=enter) for name in NAMES)

    async def _serve(self, messages: Messages, send: Send) -> None:
        requests = (decoded(reflection_pb2.ServerReflectionRequest, message) async for message in messages)
        async for response in self._answers.ServerReflectionInfo(requests, None):
            given = response.file_descriptor_response.file_descriptor_proto
            for index, serialized in enumerate(given):
                name = descriptor_pb2.FileDescriptorProto.FromString(serialized).name
                given[index] = self._files[name]
            if response.original_request.ByteSize() > _MOST_ECHOED_BYTES:
                response.ClearField("original_request")
            await send(response)


def _described_files() -> dict[str, bytes]:
    """Serialize every described file, by name; dependencies come first."""
    generated_api = resources.files("recommender").joinpath("recommend_api")
    files = {
        file.name: file
        for ours in ("v1/recommend_api.binpb", "open_inference/open_inference.binpb")
        for file in descriptor_pb2.FileDescriptorSet.FromString(generated_api.joinpath(ours).read_bytes()).file
    }
    # Error details travel as Any: a client needs their descriptors to show them.
    for generated in (duration_pb2, error_details_pb2, health_pb2, reflection_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        generated.DESCRIPTOR.CopyToProto(file)
        files[file.name] = file
    v1 = _renamed(files[reflection_pb2.DESCRIPTOR.name])
    files[v1.name] = v1
    return {name: file.SerializeToString() for name, file in files.items()}


def _renamed(v1alpha: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    file.CopyFrom(v1alpha)
    file.name = file.name.replace("v1alpha", "v1")
    file.package = _V1
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(f".{_V1ALPHA}.", f".{_V1}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{_V1ALPHA}.", f".{_V1}.")
        method.output_type = method.output_type.replace(f".{_V1ALPHA}.", f".{_V1}.")
    return file
