"""Exactness with features: rows with and without them in one batch get what torch gives each alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommender.client import feature_value
from recommender.domain import Ranking
from recommender.export import ExportOptions, export_model
from recommender.models.card import Card, card_path
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge
from tests.support.requests import requests
from tests.support.serving import served
from tests.support.user_networks import CITIES, ITEMS, USERS, Featured

pytestmark = pytest.mark.both_edges

_NUMBERS = st.floats(-9, 9, width=32)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "age": st.one_of(st.floats(0, 120, width=32), st.integers(0, 120)),
    "city": st.one_of(st.sampled_from(CITIES), st.text(max_size=5)),
    "level": st.integers(0, 3),
    "premium": st.booleans(),
    "tastes": st.lists(_NUMBERS, min_size=3, max_size=3),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("featured") / "10_model.onnx"
    return export_model(ExportOptions(network="tests.support.user_networks:Featured", output=output))


@pytest.fixture(scope="module")
def stub(file: Path, edge: Edge) -> Iterator[api_grpc.RecommenderServiceStub]:
    with served(file, 10, edge) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield api_grpc.RecommenderServiceStub(channel)


@st.composite
def asked(draw: st.DrawFn) -> tuple[api.RecommendRequest, dict[str, Any]]:
    """Any request with or without a user and features, and the values of these."""
    request = draw(requests(ITEMS, USERS))
    request.ClearField("min_score")
    features = {name: draw(VALUES[name]) for name in draw(st.sets(st.sampled_from([*VALUES])))}
    for name, value in features.items():
        request.features[name].CopyFrom(feature_value(value))
    return request, features


def expected(network: Featured, request: api.RecommendRequest, features: dict[str, Any]) -> Ranking:
    history = [item for item in request.item_ids if item < ITEMS]
    allowed = set(range(ITEMS)) - set(request.excluded_item_ids)
    if request.exclude_history:
        allowed -= set(history)
    if request.candidate_item_ids:
        allowed &= set(request.candidate_item_ids)
    known = request.HasField("user_id") and 1 <= request.user_id <= USERS
    values = {name: each["default"] for name, each in Featured.feature_inputs.items()} | features
    with torch.no_grad():
        vector = network(
            torch.tensor([history or [0]]),
            torch.tensor([len(history)]),
            torch.tensor([values["tastes"]], dtype=torch.float32),
            torch.tensor([request.user_id if known else 0]),
            torch.tensor([values["premium"]]),
            torch.tensor([CITIES.index(values["city"]) + 1 if values["city"] in CITIES else 0]),
            torch.tensor([values["level"]]),
            torch.tensor([values["age"]], dtype=torch.float32),
        )
        scores = (vector @ network.items.weight.T)[0].tolist()
    order = [item for item in sorted(range(ITEMS), key=lambda item: (-scores[item], item)) if item in allowed]
    order = order[: request.limit or 10]
    return Ranking(order, [scores[item] for item in order])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(together=st.lists(asked(), min_size=1, max_size=12))
def test_rows_of_every_kind_in_one_batch_get_what_torch_gives_each_alone(
    stub: api_grpc.RecommenderServiceStub, file: Path, together: list[tuple[api.RecommendRequest, dict[str, Any]]]
) -> None:
    tolerance = Card.model_validate_json(card_path(file).read_bytes()).score_tolerance
    network = Featured()

    call = api.BatchRecommendRequest(requests=[request for request, _ in together])
    results = stub.BatchRecommend(call, timeout=60).results

    for (request, features), result in zip(together, results, strict=True):
        assert result.WhichOneof("outcome") == "response", result.error
        found = Ranking(list(result.response.item_ids), list(result.response.scores))
        assert found.equals(expected(network, request, features), tolerance)
