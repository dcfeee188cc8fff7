"""Exactness: for all exclusions, limits and candidates the answer is that of brute force."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommender.domain import Ranking
from recommender.models.card import Card, card_path
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge
from tests.support.catalogues import add_fallback, export_catalogue, reference_embeddings
from tests.support.requests import requests
from tests.support.serving import served

pytestmark = pytest.mark.both_edges

SIZES = (5, 130, 3000)


@pytest.fixture(scope="module", params=SIZES)
def catalogue(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, edge: Edge
) -> Iterator[tuple[api_grpc.RecommenderServiceStub, npt.NDArray[np.float32], float, list[int]]]:
    items: int = request.param
    model = export_catalogue(tmp_path_factory.mktemp("catalogue"), items)
    fallback = list(range(items - 1, -1, -2))
    add_fallback(model, fallback)
    tolerance = Card.model_validate_json(card_path(model).read_bytes()).score_tolerance
    with served(model, min(items, 10), edge) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield api_grpc.RecommenderServiceStub(channel), reference_embeddings(items), tolerance, fallback


def expected(
    request: api.RecommendRequest, embeddings: npt.NDArray[np.float32], fallback: list[int]
) -> tuple[Ranking, int]:
    """What the request must get, and from which source, by sorting everything."""
    items = len(embeddings)
    limit = request.limit or min(items, 10)
    history = [item for item in request.item_ids if item < items]
    allowed = set(range(items)) - set(request.excluded_item_ids)
    if request.exclude_history:
        allowed -= set(history)
    if request.candidate_item_ids:
        allowed &= set(request.candidate_item_ids)
    if not history:
        return Ranking([item for item in fallback if item in allowed][:limit], []), api.SOURCE_FALLBACK
    scores = embeddings.astype(np.float64) @ embeddings[history].astype(np.float64).mean(axis=0)
    order = [item for item in np.argsort(-scores, kind="stable").tolist() if item in allowed][:limit]
    return Ranking(order, [float(scores[item]) for item in order]), api.SOURCE_MODEL


def reported(request: api.RecommendRequest, items: int) -> list[int]:
    named = [*request.item_ids, *request.excluded_item_ids, *request.candidate_item_ids]
    return list(dict.fromkeys(item for item in named if item >= items))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_requests_of_every_kind_in_one_batch_get_what_brute_force_gives(
    catalogue: tuple[api_grpc.RecommenderServiceStub, npt.NDArray[np.float32], float, list[int]],
    data: st.DataObject,
) -> None:
    stub, embeddings, tolerance, fallback = catalogue
    items = len(embeddings)
    asked = data.draw(st.lists(requests(items), min_size=1, max_size=12))

    results = stub.BatchRecommend(api.BatchRecommendRequest(requests=asked), timeout=60).results

    assert len(results) == len(asked)
    for request, result in zip(asked, results, strict=True):
        assert result.WhichOneof("outcome") == "response", result.error
        response = result.response
        ranking, source = expected(request, embeddings, fallback)
        got = Ranking(list(response.item_ids), list(response.scores))
        assert response.source == source
        assert list(response.unknown_item_ids) == reported(request, items)
        if source == api.SOURCE_FALLBACK or not request.HasField("min_score"):
            assert got.equals(ranking, tolerance)
            continue
        # Around the bound itself rounding decides; everything clear of it must be as it should.
        bound = request.min_score
        assert all(score >= bound for score in got.scores)
        clear = sum(score > bound + tolerance for score in ranking.scores)
        assert len(got.item_ids) >= clear
        cut = slice(len(got.item_ids))
        assert got.equals(Ranking(ranking.item_ids[cut], ranking.scores[cut]), tolerance)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(item_ids=st.lists(st.one_of(st.integers(0, 2999), st.integers(-(2**31), 2**31 - 1)), max_size=8))
def test_a_plain_request_and_one_that_goes_the_general_way_come_to_the_same(
    catalogue: tuple[api_grpc.RecommenderServiceStub, npt.NDArray[np.float32], float, list[int]],
    item_ids: list[int],
) -> None:
    stub, *_ = catalogue
    plain = api.RecommendRequest(item_ids=item_ids)
    general = api.RecommendRequest(item_ids=item_ids, routing_key="anything")

    one, other = stub.BatchRecommend(api.BatchRecommendRequest(requests=[plain, general]), timeout=60).results
    messages = [api.StreamRecommendRequest(request=request, timeout_ms=60_000) for request in (plain, general)]
    streamed, also = stub.StreamRecommend(iter(messages), timeout=60)

    assert one == other
    assert streamed == also
