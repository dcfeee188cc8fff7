"""The same requests by both protocols: a row of ModelInfer is answered as a request of BatchRecommend is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommender.domain import Ranking
from recommender.models.card import Card
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.open_inference import open_inference_pb2_grpc as oip_grpc
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from tests.support.inference import infer, tensor
from tests.support.paths import WEIGHTS
from tests.support.requests import requests
from tests.support.serving import Shared

TIMEOUT = 60.0
ITEMS = 10_000


@pytest.fixture(scope="module")
def channel(shared: Shared) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{shared().port}") as channel:
        yield channel


def as_tensors(rows: Sequence[api.RecommendRequest], *, typed: bool) -> oip.ModelInferRequest:
    """The requests as the rows of one, lists padded to the longest."""
    inputs: dict[str, object] = {
        "user_history": padded([row.item_ids for row in rows]),
        "history_length": [len(row.item_ids) for row in rows],
        "k": [row.limit for row in rows],
    }
    pairs = [[place, item] for place, row in enumerate(rows) for item in row.excluded_item_ids]
    if pairs:
        inputs["excluded"] = pairs[::-1]
    if any(row.candidate_item_ids for row in rows):
        inputs["candidates"] = padded([row.candidate_item_ids for row in rows])
        inputs["candidates_length"] = [len(row.candidate_item_ids) for row in rows]
    return infer(inputs, typed=typed)


def padded(lists: Sequence[Sequence[int]]) -> list[list[int]]:
    longest = max(map(len, lists)) + 1
    return [[*each, *[0] * (longest - len(each))] for each in lists]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(requests(ITEMS), min_size=1, max_size=5), typed=st.booleans())
def test_rows_are_answered_as_requests_are(
    channel: grpc.Channel, rows: list[api.RecommendRequest], *, typed: bool
) -> None:
    for row in rows:
        row.ClearField("exclude_history")
        row.ClearField("min_score")
    tolerance = Card.model_validate_json((WEIGHTS / "10_model.card.json").read_bytes()).score_tolerance
    native = api_grpc.RecommenderServiceStub(channel)
    results = native.BatchRecommend(api.BatchRecommendRequest(requests=rows), timeout=TIMEOUT).results
    call = oip_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(as_tensors(rows, typed=typed), timeout=TIMEOUT)

    errors = [result.error.code for result in results if result.WhichOneof("outcome") == "error"]
    if errors:
        assert call.code().value[0] == errors[0]
        return
    ids, scores = tensor(call.result(), "recommendations"), tensor(call.result(), "scores")
    for result, of_row, scored in zip(results, ids, scores, strict=True):
        count = len(result.response.item_ids)
        expected = Ranking(list(result.response.item_ids), list(result.response.scores))
        assert Ranking(of_row[:count], scored[:count]).equals(expected, tolerance)
        assert set(of_row[count:]) <= {-1}
