"""The RPCs of the Open Inference Protocol, and its health calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from google.protobuf.message import Message
from google.rpc import code_pb2

from recommender.api.messages import decoded
from recommender.api.open_inference.service import OpenInferenceService
from recommender.edges.calls import ProtocolError
from recommender.edges.health import Health
from recommender.edges.method import Answer
from recommender.recommend_api.open_inference import open_inference_pb2 as oip

SERVICE_NAME: Final = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_NO_LOADING: Final = (
    "models are neither loaded nor unloaded by calls: versions follow their source, a file, a folder or a registry"
)


class OpenInference:
    """Answers the unary RPCs. `opened` gives the service, or raises UnavailableError until there is one."""

    def __init__(self, opened: Callable[[], OpenInferenceService], health: Health) -> None:
        self._opened = opened
        self._health = health

    def probes(self) -> Iterator[tuple[str, Answer]]:
        """The RPCs that report the server's health, by name."""
        yield "ServerLive", self._server_live
        yield "ServerReady", self._server_ready
        yield "ModelReady", self._model_ready

    def others(self) -> Iterator[tuple[str, Answer]]:
        """All other RPCs with one reply, by name. The service charges the rows of ModelInfer as it reads them."""
        yield "ModelInfer", self._model_infer
        yield "ServerMetadata", self._server_metadata
        yield "ModelMetadata", self._model_metadata
        yield "ModelConfig", self._model_config
        yield "ModelStatistics", self._model_statistics
        yield "RepositoryIndex", self._repository_index
        yield "RepositoryModelLoad", self._refuse_loading
        yield "RepositoryModelUnload", self._refuse_loading

    async def _server_live(self, message: bytes, _deadline: float, _request_id: str) -> Message:
        decoded(oip.ServerLiveRequest, message)
        return oip.ServerLiveResponse(live=True)

    async def _server_ready(self, message: bytes, _deadline: float, _request_id: str) -> Message:
        decoded(oip.ServerReadyRequest, message)
        return oip.ServerReadyResponse(ready=self._health.serving())

    async def _model_ready(self, message: bytes, _deadline: float, _request_id: str) -> Message:
        request = decoded(oip.ModelReadyRequest, message)
        return oip.ModelReadyResponse(ready=self._health.serving() and self._opened().ready(request))

    def _model_infer(self, message: bytes, deadline: float, request_id: str) -> Awaitable[Message]:
        # The fast path: no extra coroutine.
        return self._opened().infer(message, deadline, request_id)

    async def _server_metadata(self, message: bytes, _deadline: float, _request_id: str) -> Message:
        decoded(oip.ServerMetadataRequest, message)
        return self._opened().server_metadata()

    async def _model_metadata(self, message: bytes, _deadline: float, _request_id: str) -> Message:
        return self._opened().metadata(decoded(oip.ModelMetadataRequest, message))

    async def _model_config(self, message: bytes, _deadline: float, _request_id: str) -> Message:
        return self._opened().configuration(decoded(oip.ModelConfigRequest, message))

    async def _model_statistics(self, message: bytes, _deadline: float, _request_id: str) -> Message:
        return self._opened().statistics(decoded(oip.ModelStatisticsRequest, message))

    async def _repository_index(self, message: bytes, _deadline: float, _request_id: str) -> Message:
        return self._opened().index(decoded(oip.RepositoryIndexRequest, message))

    async def _refuse_loading(self, _message: bytes, _deadline: float, _request_id: str) -> Message:
        raise ProtocolError(code_pb2.UNIMPLEMENTED, _NO_LOADING)
