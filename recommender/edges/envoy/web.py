"""Envoy filters that turn gRPC-Web and JSON into gRPC before a call reaches Python."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2

from recommender.api.metadata import MOST_REPLY_BYTES
from recommender.edges.envoy.config import Config

_PACKAGE = "recommender.recommend_api.v1"
_DESCRIPTORS = "recommend_api.binpb"
_SERVICE = "recommend_api.v1.RecommenderService"
_KIND = "type.googleapis.com/envoy.extensions.filters.http."
_TRACED = (
    *("traceparent", "tracestate", "baggage"),
    *("b3", "x-b3-flags", "x-b3-parentspanid", "x-b3-sampled", "x-b3-spanid", "x-b3-traceid"),
)
"""Headers of a trace that began in a page."""
_ASKED = ("authorization", "content-type", "grpc-timeout", "x-grpc-web", "x-request-id", "x-user-agent", *_TRACED)
"""Request headers that a page may send."""
_TOLD = ("grpc-message", "grpc-retry-pushback-ms", "grpc-status", "grpc-status-details-bin", "x-request-id")
"""Response headers that a page may read."""
_ANSWER_BYTES = 4 * MOST_REPLY_BYTES
"""The limit of a JSON reply: JSON takes three times the bytes of a message."""
_REMEMBERED_SECONDS = 7200
"""How long a browser may cache a preflight answer."""


def web_filters(folder: Path, origins: Sequence[str]) -> list[Config]:
    """Build the filters before the application's, and write the service's descriptors to `folder`.

    Pages of `origins` may call from a browser if the virtual host also has `pages_may_call`.
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
    """Build the CORS policy of a virtual host for pages of these origins."""
    policy: Config = {
        "@type": f"{_KIND}cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": origin} for origin in origins],
        "allow_methods": "POST",
        "allow_headers": ",".join(_ASKED),
        "expose_headers": ",".join(_TOLD),
        "max_age": str(_REMEMBERED_SECONDS),
    }
    return {
        # Envoy looks the policy up at a route; the route itself is never taken.
        "routes": [{"match": {"prefix": "/"}, "non_forwarding_action": {}}],
        "typed_per_filter_config": {"envoy.filters.http.cors": policy},
    }


def _filter(name: str, kind: str, config: Config | None = None) -> Config:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{_KIND}{kind}", **(config or {})}}


def _descriptors() -> bytes:
    """Serialize the descriptors of the service, their imports, and the error details."""
    known = FileDescriptorSet.FromString(files(_PACKAGE).joinpath(_DESCRIPTORS).read_bytes())
    if error_details_pb2.DESCRIPTOR.name not in {each.name for each in known.file}:
        error_details_pb2.DESCRIPTOR.CopyToProto(known.file.add())
    return known.SerializeToString()
