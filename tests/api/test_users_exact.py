"""Exactness with users: rows with and without them in one batch get what torch gives each alone."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommender.domain import Ranking
from recommender.export import ExportOptions, export_model
from recommender.models.card import Card, card_path
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge
from tests.support.requests import requests
from tests.support.serving import served
from tests.support.user_networks import ITEMS, USERS, Hybrid

pytestmark = pytest.mark.both_edges


@pytest.fixture(scope="module")
def hybrid(
    tmp_path_factory: pytest.TempPathFactory, edge: Edge
) -> Iterator[tuple[api_grpc.RecommenderServiceStub, float]]:
    """A caller of the network, and its score tolerance."""
    path = tmp_path_factory.mktemp("hybrid") / "10_model.onnx"
    export_model(ExportOptions(network="tests.support.user_networks:Hybrid", output=path))
    tolerance = Card.model_validate_json(card_path(path).read_bytes()).score_tolerance
    with served(path, 10, edge) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield api_grpc.RecommenderServiceStub(channel), tolerance


def expected(network: Hybrid, request: api.RecommendRequest) -> tuple[Ranking, int, bool]:
    """What the request must get, from which source, and whether its user is unknown."""
    history = [item for item in request.item_ids if item < ITEMS]
    allowed = set(range(ITEMS)) - set(request.excluded_item_ids)
    if request.exclude_history:
        allowed -= set(history)
    if request.candidate_item_ids:
        allowed &= set(request.candidate_item_ids)
    known = request.HasField("user_id") and 1 <= request.user_id <= USERS
    user = torch.tensor([request.user_id if known else 0])
    with torch.no_grad():
        vector = network(torch.tensor([history or [0]]), torch.tensor([len(history)]), user)
        scores = (vector @ network.items.weight.T)[0].tolist()
    order = [item for item in sorted(range(ITEMS), key=lambda item: (-scores[item], item)) if item in allowed]
    order = order[: request.limit or 10]
    source = api.SOURCE_MODEL if history else api.SOURCE_USER
    return Ranking(order, [scores[item] for item in order]), source, request.HasField("user_id") and not known


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_of_every_kind_in_one_batch_get_what_torch_gives_each_alone(
    hybrid: tuple[api_grpc.RecommenderServiceStub, float], data: st.DataObject
) -> None:
    stub, tolerance = hybrid
    network = Hybrid()
    asked = data.draw(st.lists(requests(ITEMS, USERS), min_size=1, max_size=12))
    for request in asked:
        request.ClearField("min_score")

    results = stub.BatchRecommend(api.BatchRecommendRequest(requests=asked), timeout=60).results

    for request, result in zip(asked, results, strict=True):
        assert result.WhichOneof("outcome") == "response", result.error
        response = result.response
        ranking, source, unknown = expected(network, request)
        assert Ranking(list(response.item_ids), list(response.scores)).equals(ranking, tolerance)
        assert (response.source, response.unknown_user) == (source, unknown)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    item_ids=st.lists(st.one_of(st.integers(0, ITEMS - 1), st.integers(-3, 2**31 - 1)), max_size=4),
    user_id=st.one_of(st.integers(0, USERS + 1), st.integers(-(2**63), 2**63 - 1)),
)
def test_a_request_of_a_history_and_a_user_and_one_that_goes_the_general_way_come_to_the_same(
    hybrid: tuple[api_grpc.RecommenderServiceStub, float], item_ids: list[int], user_id: int
) -> None:
    stub, _ = hybrid
    short = api.RecommendRequest(item_ids=item_ids, user_id=user_id)
    general = api.RecommendRequest(item_ids=item_ids, user_id=user_id, routing_key="anything")

    one, other = stub.BatchRecommend(api.BatchRecommendRequest(requests=[short, general]), timeout=60).results
    messages = [api.StreamRecommendRequest(request=request, timeout_ms=60_000) for request in (short, general)]
    streamed, also = stub.StreamRecommend(iter(messages), timeout=60)

    assert one == other
    assert streamed == also
