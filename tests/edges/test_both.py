"""The two edges side by side: the same requests get equal replies."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommender.domain import Ranking
from recommender.models.card import Card
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from tests.support.paths import WEIGHTS
from tests.support.requests import requests
from tests.support.serving import served

TIMEOUT = 60.0
MODEL = WEIGHTS / "10_model.onnx"


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[api_grpc.RecommenderServiceStub, api_grpc.RecommenderServiceStub]]:
    """A caller of each edge, of the reference model."""
    with (
        served(MODEL, 10, "grpc") as one,
        served(MODEL, 10, "envoy") as other,
        grpc.insecure_channel(f"127.0.0.1:{one}") as channel,
        grpc.insecure_channel(f"127.0.0.1:{other}") as other_channel,
    ):
        yield api_grpc.RecommenderServiceStub(channel), api_grpc.RecommenderServiceStub(other_channel)


def outcome(stub: api_grpc.RecommenderServiceStub, request: api.RecommendRequest) -> tuple[object, Ranking]:
    """Everything that a caller sees, save the call's own id; the ranking apart."""
    call = stub.Recommend.future(request, timeout=TIMEOUT)
    if call.code() is not grpc.StatusCode.OK:
        trailing = {key: value for key, value in call.trailing_metadata() if key not in {"x-request-id", "date"}}
        return (call.code(), call.details(), trailing), Ranking([], [])
    reply = call.result()
    ranking = Ranking(list(reply.item_ids), list(reply.scores))
    for field in ("item_ids", "scores", "request_id"):
        reply.ClearField(field)
    return reply, ranking


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=st.one_of(requests(10_000), st.builds(api.RecommendRequest, item_ids=st.lists(st.integers(-5, 5)))))
def test_both_edges_give_equal_replies(
    both: tuple[api_grpc.RecommenderServiceStub, api_grpc.RecommenderServiceStub], request: api.RecommendRequest
) -> None:
    tolerance = Card.model_validate_json((WEIGHTS / "10_model.card.json").read_bytes()).score_tolerance
    (one, ranking), (other, other_ranking) = (outcome(stub, request) for stub in both)

    assert one == other
    if not request.HasField("min_score"):  # around the bound rounding decides
        assert ranking.equals(other_ranking, tolerance)
