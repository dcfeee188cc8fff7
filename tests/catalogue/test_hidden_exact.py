"""Hidden items come back in no answer, and every answer is as long as brute force makes it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommender.domain import Ranking
from recommender.models.card import Card, card_path
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.catalogues import add_fallback, add_vocabulary, export_catalogue, reference_embeddings
from tests.support.hiding import best_visible, write_list
from tests.support.requests import requests
from tests.support.serving import PATIENCE, in_a_thread, server_of

pytestmark = pytest.mark.both_edges

ITEMS, LIMIT = 6_000, 10
FALLBACK = list(range(ITEMS - 1, -1, -2))
_MOST = 1_000
KEYS = [f"item {number}" for number in range(ITEMS)]
INFER = "/inference.GRPCInferenceService/ModelInfer"
HIDDEN: Sequence[frozenset[int]] = (
    frozenset(),
    frozenset({FALLBACK[0], 5}),
    frozenset(range(0, ITEMS, 2)),
    frozenset(range(7, ITEMS)),
    frozenset(range(ITEMS)),
)


@dataclass
class Shop:
    """A server whose list of hidden items tests change."""

    stub: api_grpc.RecommenderServiceStub
    channel: grpc.Channel
    embeddings: npt.NDArray[np.float32]
    tolerance: float
    path: Path

    def hide(self, items: frozenset[int]) -> None:
        """Hide exactly these, and wait until it is so."""
        write_list(self.path, [KEYS[item] for item in sorted(items)] + ["an item of another shop"])
        ends = time.monotonic() + PATIENCE
        while self._visible() != set(range(ITEMS)) - items:
            assert time.monotonic() < ends

    def _visible(self) -> set[int]:
        """The items that come back where they are candidates."""
        asked = [
            api.RecommendRequest(item_ids=[0], limit=_MOST, candidate_item_ids=range(start, start + _MOST))
            for start in range(0, ITEMS, _MOST)
        ]
        results = self.stub.BatchRecommend(api.BatchRecommendRequest(requests=asked), timeout=PATIENCE).results
        return {item for result in results for item in result.response.item_ids}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = export_catalogue(tmp_path_factory.mktemp("catalogue"), ITEMS)
    add_fallback(path, FALLBACK)
    add_vocabulary(path, KEYS)
    return path


@pytest.fixture(scope="module")
def shop(model: Path, tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("hidden") / "hidden.txt"
    write_list(path, [])
    known = Settings(
        port=0,
        model=model,
        num_recommendations=LIMIT,
        edge=edge,
        default_timeout_ms=60_000,
        hidden_items=str(path),
        hidden_items_poll_ms=10,
    )
    tolerance = Card.model_validate_json(card_path(model).read_bytes()).score_tolerance
    with (
        in_a_thread(lambda: server_of(known)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield Shop(api_grpc.RecommenderServiceStub(channel), channel, reference_embeddings(ITEMS), tolerance, path)


@pytest.mark.parametrize("hidden", HIDDEN, ids=lambda items: f"{len(items)} hidden")
def test_answers_are_those_of_brute_force_without_the_hidden_items(shop: Shop, hidden: frozenset[int]) -> None:
    shop.hide(hidden)

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(asked=st.lists(requests(ITEMS), min_size=1, max_size=12))
    def check(asked: list[api.RecommendRequest]) -> None:
        for request in asked:
            request.ClearField("min_score")
        results = shop.stub.BatchRecommend(api.BatchRecommendRequest(requests=asked), timeout=PATIENCE).results
        for request, result in zip(asked, results, strict=True):
            ranking, source = best_visible(request, shop.embeddings, hidden, FALLBACK, LIMIT)
            reply = result.response
            assert result.WhichOneof("outcome") == "response", result.error
            assert reply.source == source
            assert Ranking(list(reply.item_ids), list(reply.scores)).equals(ranking, shop.tolerance), (request, reply)
            assert list(reply.item_keys) == [KEYS[item] for item in reply.item_ids]

    check()


def test_the_open_inference_protocol_and_streams_give_no_hidden_item_either(shop: Shop) -> None:
    history = [3, 8]
    best, _ = best_visible(api.RecommendRequest(item_ids=history), shop.embeddings, (), FALLBACK, LIMIT)
    hidden = frozenset(best.item_ids[::2])
    shop.hide(hidden)
    wanted, _ = best_visible(api.RecommendRequest(item_ids=history), shop.embeddings, hidden, FALLBACK, LIMIT)
    infer: grpc.UnaryUnaryMultiCallable[oip.ModelInferRequest, oip.ModelInferResponse] = shop.channel.unary_unary(
        INFER,
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    tensor = oip.ModelInferRequest.InferInputTensor(name="user_history", datatype="INT64", shape=[1, len(history)])
    name = shop.stub.ListModels(api.ListModelsRequest()).models[0].name

    reply = infer(
        oip.ModelInferRequest(
            model_name=name, inputs=[tensor], raw_input_contents=[np.array(history, np.int64).tobytes()]
        ),
        timeout=PATIENCE,
    )
    (streamed,) = shop.stub.StreamRecommend(
        iter([api.StreamRecommendRequest(request=api.RecommendRequest(item_ids=history))]), timeout=PATIENCE
    )

    assert np.frombuffer(reply.raw_output_contents[0], np.int64).tolist() == wanted.item_ids
    assert list(streamed.response.item_ids) == wanted.item_ids
