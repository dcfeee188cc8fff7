"""How a server is asked for a history and what its answer says: our proto, KServe v2, or JSON over HTTP/1.1."""

from __future__ import annotations

import json
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import numpy as np

from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.v1 import recommend_api_pb2 as api

PATIENCE = 5.0


class Wire(Protocol):
    """A way to ask."""

    @property
    def path(self) -> str:
        """Of the URL."""
        ...

    @property
    def http1(self) -> bool:
        """Whether it goes over HTTP/1.1, else over HTTP/2 as gRPC does."""
        ...

    @property
    def content_type(self) -> str:
        """Of the request."""
        ...

    def body(self, history: Sequence[int]) -> bytes:
        """The framed message for a history."""
        ...

    def ask(self, port: int, history: Sequence[int]) -> tuple[list[int], int]:
        """The ids that a server recommends, and the bytes of its answer's body. Raises OSError or grpc.RpcError."""
        ...


class _Grpc(ABC):
    http1 = False
    content_type = "application/grpc"
    path: str

    @abstractmethod
    def message(self, history: Sequence[int]) -> bytes: ...

    @abstractmethod
    def ids(self, reply: bytes) -> list[int]: ...

    def body(self, history: Sequence[int]) -> bytes:
        message = self.message(history)
        return b"\0" + len(message).to_bytes(4, "big") + message

    def ask(self, port: int, history: Sequence[int]) -> tuple[list[int], int]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Callable[..., bytes] = channel.unary_unary(self.path)
            reply = call(self.message(history), timeout=PATIENCE)
        return self.ids(reply), len(reply) + 5


class Recommend(_Grpc):
    """Our proto: ours, the naive servicer, Ray Serve."""

    path = "/recommend_api.v1.RecommenderService/Recommend"

    def message(self, history: Sequence[int]) -> bytes:
        """A RecommendRequest."""
        return api.RecommendRequest(item_ids=history).SerializeToString()

    def ids(self, reply: bytes) -> list[int]:
        """Of a RecommendResponse."""
        return list(api.RecommendResponse.FromString(reply).item_ids)


class KServe(_Grpc):
    """The Open Inference Protocol: Triton and MLServer. The history goes as raw bytes, as tritonclient sends it."""

    path = "/inference.GRPCInferenceService/ModelInfer"

    def message(self, history: Sequence[int]) -> bytes:
        """A ModelInferRequest of one row."""
        request = oip.ModelInferRequest(model_name="recommender")
        request.inputs.add(name="item_ids", datatype="INT64", shape=[1, len(history)])
        request.raw_input_contents.append(np.array(history, np.int64).tobytes())
        return request.SerializeToString()

    def ids(self, reply: bytes) -> list[int]:
        """Of a ModelInferResponse, raw or not."""
        response = oip.ModelInferResponse.FromString(reply)
        at = [output.name for output in response.outputs].index("recommendations")
        if response.raw_output_contents:
            return [int(item) for item in np.frombuffer(response.raw_output_contents[at], np.int64)]
        return list(response.outputs[at].contents.int64_contents)


@dataclass(frozen=True)
class Json:
    """JSON over HTTP/1.1: mosec, LitServe, BentoML."""

    path: str
    many: bool = False
    """Whether a request is a list of histories, and its answer a list."""
    http1 = True
    content_type = "application/json"

    def body(self, history: Sequence[int]) -> bytes:
        """The history, or a list of it alone."""
        return json.dumps({"histories": [[*history]]} if self.many else {"item_ids": [*history]}).encode()

    def ask(self, port: int, history: Sequence[int]) -> tuple[list[int], int]:
        """With the standard library's client."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{self.path}", self.body(history), {"content-type": self.content_type}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310
            reply = response.read()
        told = json.loads(reply)
        return list((told[0] if self.many else told)["item_ids"]), len(reply)
