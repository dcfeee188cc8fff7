"""gRPC server reflection, v1 and v1alpha, with the proto's comments in it.

The library serves v1alpha from generated code, which has lost its comments. Here it serves from
descriptors: ours as `protoc --include_source_info` wrote them, so that `grpcurl describe` shows what
each field means; v1, which is v1alpha under another name (grpc/grpc `reflection.proto`), made from it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from recommender.edges.grpc_aio.edge import enter
from recommender.security.access import Access

_V1ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
_METHOD = "ServerReflectionInfo"
NAMES = (f"{_V1ALPHA}.ServerReflection", f"{_V1}.ServerReflection")
METHODS = tuple(f"/{name}/{_METHOD}" for name in NAMES)


def add_reflection(server: grpc.aio.Server, service_names: tuple[str, ...], access: Access | None = None) -> None:
    """Describe these services, and reflection itself in both its versions, to whom `access` lets in or to everybody."""
    servicer = Reflection(service_names, access)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, {_METHOD: handler}) for name in NAMES)
    )


class Reflection:
    """The library's answers, with each file as we have it instead of as generated code keeps it."""

    def __init__(self, service_names: tuple[str, ...], access: Access | None = None) -> None:
        files = _described_files()
        pool = descriptor_pool.DescriptorPool()
        for file in files.values():
            pool.AddSerializedFile(file)
        # The library's stubs say that it returns a coroutine; it is an async generator.
        self._answers: Any = reflection.aio.ReflectionServicer((*service_names, *NAMES), pool=pool)
        self._files = files
        self._access = access

    async def ServerReflectionInfo(  # noqa: N802 (gRPC names methods so)
        self,
        request_iterator: AsyncIterable[reflection_pb2.ServerReflectionRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        """Answer a caller who is let in."""
        if self._access is None:
            visit: AbstractContextManager[object] = nullcontext()
        else:
            visit = await enter(self._access, context)
        with visit:
            async for response in self.described(request_iterator):
                yield response

    async def described(
        self, request_iterator: AsyncIterable[reflection_pb2.ServerReflectionRequest]
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        """Answer each request in its turn."""
        async for response in self._answers.ServerReflectionInfo(request_iterator, None):
            given = response.file_descriptor_response.file_descriptor_proto
            for index, serialized in enumerate(given):
                name = descriptor_pb2.FileDescriptorProto.FromString(serialized).name
                given[index] = self._files[name]
            yield response


def _described_files() -> dict[str, bytes]:
    """Every file that reflection serves, serialized, by name; dependencies before those that need them."""
    ours = resources.files("recommender").joinpath("recommend_api/v1/recommend_api.binpb").read_bytes()
    files = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(ours).file}
    # Error details travel as Any: a client can only show them if it can ask what they are.
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
