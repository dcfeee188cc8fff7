"""What Envoy is told where callers may have no gRPC: gRPC-Web and JSON become gRPC before they reach Python."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2

from recommender.edges.envoy.config import Config

_PACKAGE = "recommender.recommend_api.v1"
_DESCRIPTORS = "recommend_api.binpb"
_SERVICE = "recommend_api.v1.RecommenderService"
_KIND = "type.googleapis.com/envoy.extensions.filters.http."
_ASKED = ("authorization", "content-type", "grpc-timeout", "x-grpc-web", "x-request-id", "x-user-agent")
"""Headers that a page may send."""
_TOLD = ("grpc-message", "grpc-retry-pushback-ms", "grpc-status", "grpc-status-details-bin", "x-request-id")
"""Headers of an answer that a page may read."""
_ANSWER_BYTES = 1 << 26
"""What an answer may have as JSON: a thousand requests of a thousand items each are a third of it."""
_REMEMBERED_SECONDS = 7200
"""How long a browser may remember that a page may call."""


def web_filters(folder: Path, origins: Sequence[str]) -> list[Config]:
    """Filters that go before the application's; leaves the descriptors of the service in `folder`.

    Pages of `origins` may call from a browser, if the configuration has `pages_may_call` too.
    """
    path = folder / _DESCRIPTORS
    path.write_bytes(_descriptors())
    transcoder: Config = {
        "proto_descriptor": str(path),
        "services": [_SERVICE],
        # Each method is POST /package.Service/Method, its request the body.
        "auto_mapping": True,
        # An error is JSON too, with its details.
        "convert_grpc_status": True,
        "max_response_body_size": _ANSWER_BYTES,
    }
    return [
        *([_filter("cors", "cors.v3.Cors")] if origins else ()),
        _filter("grpc_web", "grpc_web.v3.GrpcWeb"),
        _filter("grpc_json_transcoder", "grpc_json_transcoder.v3.GrpcJsonTranscoder", transcoder),
    ]


def pages_may_call(origins: Sequence[str]) -> Config:
    """What a virtual host says of the pages whose browsers ask it."""
    policy: Config = {
        "@type": f"{_KIND}cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": origin} for origin in origins],
        "allow_methods": "POST",
        "allow_headers": ",".join(_ASKED),
        "expose_headers": ",".join(_TOLD),
        "max_age": str(_REMEMBERED_SECONDS),
    }
    return {
        # Envoy looks for the policy at a route, wherever that leads.
        "routes": [{"match": {"prefix": "/"}, "non_forwarding_action": {}}],
        "typed_per_filter_config": {"envoy.filters.http.cors": policy},
    }


def _filter(name: str, kind: str, config: Config | None = None) -> Config:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{_KIND}{kind}", **(config or {})}}


def _descriptors() -> bytes:
    """The service's, all that they import, and the details of errors."""
    known = FileDescriptorSet.FromString(files(_PACKAGE).joinpath(_DESCRIPTORS).read_bytes())
    if error_details_pb2.DESCRIPTOR.name not in {each.name for each in known.file}:
        error_details_pb2.DESCRIPTOR.CopyToProto(known.file.add())
    return known.SerializeToString()
