"""The client for code without an event loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from recommender.client.answers import Recommendations, Refusal, outcome_of, recommendations_of
from recommender.client.changes import NewItem, removals, upserts
from recommender.client.connection import authorization, naming, options_for, pause_after, time_left
from recommender.client.requests import Options, Request, request_of
from recommender.client.tracing import traced
from recommender.recommend_api.v1 import catalogue_api_pb2_grpc as catalogue_grpc
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc

A = TypeVar("A")
R = TypeVar("R")


class SyncClient:
    """`Client` for code without an event loop; a context manager. Calls raise grpc.RpcError."""

    def __init__(
        self, target: str, *, credentials: grpc.ChannelCredentials | None = None, token: str | None = None
    ) -> None:
        self._authorization = authorization(token)
        self._channel = traced(
            grpc.insecure_channel(target, options_for(target))
            if credentials is None
            else grpc.secure_channel(target, credentials, options_for(target))
        )
        self._stub = api_grpc.RecommenderServiceStub(self._channel)
        self._catalogue = catalogue_grpc.CatalogueServiceStub(self._channel)

    def recommend(
        self, item_ids: Sequence[int] = (), *, timeout: float, request_id: str = "", **options: Unpack[Options]
    ) -> Recommendations:
        """Recommendations for a history, oldest item first; the server's log and traces name the call `request_id`."""
        request = request_of(item_ids, **options)
        return recommendations_of(self._call(self._stub.Recommend, request, timeout, request_id))

    def recommend_many(self, requests: Iterable[Request], *, timeout: float) -> list[Recommendations | Refusal]:
        """Answers to many requests in one call, in their order, with one outcome each."""
        response = self._call(self._stub.BatchRecommend, api.BatchRecommendRequest(requests=requests), timeout)
        return [outcome_of(result) for result in response.results]

    def get_model(self, model: str = "", *, timeout: float) -> api.Model:
        """The description of a model; of the one being served, if none is named."""
        return self._call(self._stub.GetModel, api.GetModelRequest(model=model), timeout).model

    def list_models(self, *, timeout: float) -> list[api.Model]:
        """The descriptions of all models that are served."""
        return list(self._call(self._stub.ListModels, api.ListModelsRequest(), timeout).models)

    def upsert_items(self, model: str, items: Iterable[NewItem], *, timeout: float) -> int:
        """Add items to a version, `name@version`, or replace them; returns how many were not there.

        A thousand go into a call, each with its own `timeout`; a call that fails leaves those before it done.
        """
        calls = upserts(model, items)
        return sum(self._call(self._catalogue.UpsertItems, request, timeout).added for request in calls)

    def remove_items(self, keys: Sequence[str], *, model: str = "", timeout: float) -> int:
        """Remove new items, of one version or of all; returns how many there were. Calls are as of `upsert_items`."""
        calls = removals(keys, model)
        return sum(self._call(self._catalogue.RemoveItems, request, timeout).removed for request in calls)

    def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., R], request: A, timeout: float, request_id: str = "") -> R:
        deadline = time.monotonic() + timeout
        metadata = (*naming(request_id), *self._authorization)
        for attempt in itertools.count(1):
            try:
                return method(request, timeout=time_left(deadline), metadata=metadata)
            except grpc.RpcError as error:
                call: Any = error  # what a failed call raises is the call as well; the stubs do not say so
                pause = pause_after(call.code(), call.trailing_metadata(), attempt, deadline)
                if pause is None:
                    raise
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")
