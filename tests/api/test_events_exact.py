"""Exactness with types and times: rows with and without them in one batch get what torch gives each alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from tests.support.event_networks import ITEMS, LONGEST, TYPES, Shopper
from tests.support.requests import requests
from tests.support.serving import served

pytestmark = pytest.mark.both_edges


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shopper")
    keys, output = folder / "types.txt", folder / "10_model.onnx"
    keys.write_text("view\ncart\nsold\n", encoding="utf-8")
    word = "tests.support.event_networks:Shopper"
    return export_model(ExportOptions(network=word, type_vocabulary=keys, output=output))


@pytest.fixture(scope="module")
def stub(file: Path, edge: Edge) -> Iterator[api_grpc.RecommenderServiceStub]:
    with served(file, 10, edge) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield api_grpc.RecommenderServiceStub(channel)


@st.composite
def asked(draw: st.DrawFn) -> api.RecommendRequest:
    """Any request, with types or times or both for its history, or without."""
    request = draw(requests(ITEMS))
    request.ClearField("min_score")
    size = len(request.item_ids)
    if draw(st.booleans()):
        request.history_type_ids.extend(draw(st.lists(st.integers(0, TYPES + 1), min_size=size, max_size=size)))
    if draw(st.booleans()):
        some = st.one_of(st.integers(0, 2**62), st.integers(0, 30), st.integers(1_700_000_000_000, 1_700_000_900_000))
        request.history_times.extend(draw(st.lists(some, min_size=size, max_size=size)))
    return request


def expected(network: Shopper, request: api.RecommendRequest) -> Ranking | None:
    """What the request must get; None if it must be refused."""
    places = [place for place, item in enumerate(request.item_ids) if item < ITEMS]
    known = [request.item_ids[place] for place in places]
    if not known:
        return None
    allowed = set(range(ITEMS)) - set(request.excluded_item_ids)
    if request.exclude_history:
        allowed -= set(known)
    if request.candidate_item_ids:
        allowed &= set(request.candidate_item_ids)
    places = places[-LONGEST:]
    types = [request.history_type_ids[place] if request.history_type_ids else 1 for place in places]
    types = [type_ if type_ <= TYPES else 0 for type_ in types]
    times = [request.history_times[place] if request.history_times else 0 for place in places]
    with torch.no_grad():
        vector = network(
            torch.tensor([known[-LONGEST:]]), torch.tensor([len(places)]), torch.tensor([types]), torch.tensor([times])
        )
        scores = (vector @ network.items.weight.T)[0].tolist()
    order = [item for item in sorted(range(ITEMS), key=lambda item: (-scores[item], item)) if item in allowed]
    order = order[: request.limit or 10]
    return Ranking(order, [scores[item] for item in order])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(together=st.lists(asked(), min_size=1, max_size=12))
def test_rows_of_every_kind_in_one_batch_get_what_torch_gives_each_alone(
    stub: api_grpc.RecommenderServiceStub, file: Path, together: list[api.RecommendRequest]
) -> None:
    tolerance = Card.model_validate_json(card_path(file).read_bytes()).score_tolerance
    network = Shopper()

    results = stub.BatchRecommend(api.BatchRecommendRequest(requests=together), timeout=60).results

    for request, result in zip(together, results, strict=True):
        ranking = expected(network, request)
        if ranking is None:
            assert result.error.message.startswith(("item_ids: the history has no", "item_ids: the request names"))
        else:
            assert result.WhichOneof("outcome") == "response", result.error
            response = result.response
            assert Ranking(list(response.item_ids), list(response.scores)).equals(ranking, tolerance)


_LISTS = {
    "item_ids": st.lists(st.one_of(st.integers(0, ITEMS - 1), st.integers(-1, ITEMS)), min_size=1, max_size=3),
    "history_type_ids": st.lists(st.one_of(st.integers(1, TYPES), st.integers(-1, 2**31 - 1)), max_size=3),
    "history_type_keys": st.lists(st.sampled_from(["view", "cart", "", "x" * 65, "ä" * 200]), max_size=3),
    "history_times": st.lists(st.one_of(st.integers(0, 9), st.integers(-(2**63), 2**63 - 1)), max_size=3),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=st.fixed_dictionaries({}, optional=_LISTS))
def test_a_request_of_types_and_times_and_one_that_goes_the_general_way_come_to_the_same(
    stub: api_grpc.RecommenderServiceStub, lists: dict[str, Any]
) -> None:
    short = api.RecommendRequest(**lists)
    general = api.RecommendRequest(**lists, routing_key="anything")

    one, other = stub.BatchRecommend(api.BatchRecommendRequest(requests=[short, general]), timeout=60).results

    assert one == other
