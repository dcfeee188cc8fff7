"""Filters over the wire: every answer is what brute force makes it, and says how many items match."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
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
from tests.support.catalogues import (
    add_fallback,
    add_vocabulary,
    every_batch_from_8_bits,
    export_catalogue,
    reference_embeddings,
)
from tests.support.hiding import best_visible, write_list
from tests.support.requests import requests
from tests.support.serving import PATIENCE, in_a_thread, server_of

pytestmark = pytest.mark.both_edges

LIMIT, HIDDEN = 10, frozenset({4, 5, 6})
SIZES = {"plain": 3_000, "coarse": 20_000}
_Parameters: TypeAlias = Mapping[str, api.FeatureValue]


def columns(items: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Prices from 0 to 1, and brands from 0 to 49."""
    drawn = np.random.default_rng(1)
    return drawn.random(items), drawn.integers(0, 50, items)


def _number(value: float) -> api.FeatureValue:
    return api.FeatureValue(double_value=value)


def _below(share: float) -> tuple[str, _Parameters, Callable[[int], npt.NDArray[np.bool_]]]:
    return "item.price < params.most", {"most": _number(share)}, lambda items: columns(items)[0] < share


FILTERS = (
    *map(_below, (0.0, 0.002, 0.1, 0.5, 0.99, 2.0)),
    (
        "item.brand in params.brands && !(item.price >= 0.9)",
        {"brands": api.FeatureValue(string_list=api.StringList(values=["brand 3", "brand 7", "none"]))},
        lambda items: np.isin(columns(items)[1], [3, 7]) & (columns(items)[0] < 0.9),
    ),
    ("!has(item.brand)", {}, lambda items: np.arange(items) % 10 == 9),
)
"""Filters with their parameters, and what they select. A tenth of the items is not in the table."""


@dataclass
class Shop:
    """A server with a table of items and three hidden ones."""

    stub: api_grpc.RecommenderServiceStub
    infer: grpc.UnaryUnaryMultiCallable[oip.ModelInferRequest, oip.ModelInferResponse]
    items: int
    fallback: list[int]
    embeddings: npt.NDArray[np.float32]
    tolerance: float


@pytest.fixture(scope="module", params=["plain", pytest.param("coarse", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    items, folder = SIZES[request.param], tmp_path_factory.mktemp("catalogue")
    path = export_catalogue(folder, items, coarse=request.param == "coarse")
    add_fallback(path, list(range(0, items, 2)))
    add_vocabulary(path, [f"item {item}" for item in range(items)])
    with every_batch_from_8_bits():
        yield path


@pytest.fixture(scope="module")
def shop(model: Path, edge: Edge) -> Iterator[Shop]:
    card = Card.model_validate_json(card_path(model).read_bytes())
    known = [item for item in range(card.items) if item % 10 != 9]
    prices, brands = columns(card.items)
    table = pa.table(
        {
            "key": [f"item {item}" for item in known],
            "price": prices[known],
            "brand": [f"brand {brand}" for brand in brands[known]],
        }
    )
    pa.parquet.write_table(table, model.parent / "items.parquet")
    write_list(model.parent / "hidden.txt", [f"item {item}" for item in HIDDEN])
    wanted = Settings(
        port=0,
        model=model,
        num_recommendations=LIMIT,
        edge=edge,
        default_timeout_ms=60_000,
        items=model.parent / "items.parquet",
        hidden_items=str(model.parent / "hidden.txt"),
    )
    with (
        in_a_thread(lambda: server_of(wanted)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = api_grpc.RecommenderServiceStub(channel)
        embeddings = reference_embeddings(card.items)
        infer: grpc.UnaryUnaryMultiCallable[oip.ModelInferRequest, oip.ModelInferResponse] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        yield Shop(stub, infer, card.items, list(range(0, card.items, 2)), embeddings, card.score_tolerance)


def matching(shop: Shop, chosen: int) -> set[int]:
    """The items that a filter selects: none that the table lacks, but by `!has`."""
    text, _, selects = FILTERS[chosen]
    selected = selects(shop.items)
    if not text.startswith("!has"):
        selected = selected & (np.arange(shop.items) % 10 != 9)
    return set(np.flatnonzero(selected).tolist()) - HIDDEN


def test_answers_are_those_of_brute_force_among_the_items_that_match(shop: Shop) -> None:
    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        asked=st.lists(
            st.tuples(requests(SIZES["plain"]), st.none() | st.integers(0, len(FILTERS) - 1)), min_size=1, max_size=10
        )
    )
    def check(asked: list[tuple[api.RecommendRequest, int | None]]) -> None:
        for request, chosen in asked:
            request.ClearField("min_score")
            if chosen is not None:
                request.filter = FILTERS[chosen][0]
                for name, value in FILTERS[chosen][1].items():
                    request.filter_parameters[name].CopyFrom(value)
        call = api.BatchRecommendRequest(requests=[request for request, _ in asked])
        results = shop.stub.BatchRecommend(call, timeout=PATIENCE).results
        for (request, chosen), result in zip(asked, results, strict=True):
            match = None if chosen is None else matching(shop, chosen)
            gone = HIDDEN if match is None else set(range(shop.items)) - match
            ranking, source = best_visible(request, shop.embeddings, gone, shop.fallback, LIMIT)
            reply = result.response
            assert result.WhichOneof("outcome") == "response", result.error
            assert reply.source == source
            assert Ranking(list(reply.item_ids), list(reply.scores)).equals(ranking, shop.tolerance), (request, reply)
            assert reply.HasField("matching_items") is (match is not None)
            assert reply.matching_items == len(match or ())

    check()


def test_a_filter_counts_in_calls_of_one_and_in_streams_too(shop: Shop) -> None:
    request = api.RecommendRequest(item_ids=[3, 8], filter=FILTERS[2][0], filter_parameters=FILTERS[2][1])
    gone = set(range(shop.items)) - matching(shop, 2)
    wanted, _ = best_visible(request, shop.embeddings, gone, shop.fallback, LIMIT)
    reply = shop.stub.Recommend(request, timeout=PATIENCE)
    (streamed,) = shop.stub.StreamRecommend(iter([api.StreamRecommendRequest(request=request)]), timeout=PATIENCE)
    for each in (reply, streamed.response):
        assert list(each.item_ids) == wanted.item_ids
        assert each.matching_items == shop.items - len(gone)


def infer(shop: Shop, rows: int, parameters: Mapping[str, str | float]) -> list[list[int]]:
    """The items of rows whose histories are all 3, 8, by the Open Inference Protocol."""
    kinds = {str: "string_param", float: "double_param", int: "int64_param"}
    histories = oip.ModelInferRequest.InferInputTensor(
        name="user_history",
        datatype="INT64",
        shape=[rows, 2],
        contents=oip.InferTensorContents(int64_contents=[3, 8] * rows),
    )
    request = oip.ModelInferRequest(model_name=shop.stub.ListModels(api.ListModelsRequest()).models[0].name)
    request.inputs.append(histories)
    for name, value in parameters.items():
        setattr(request.parameters[name], kinds[type(value)], value)
    reply = shop.infer(request, timeout=PATIENCE)
    assert reply.parameters["matching_items"].int64_param == len(matching(shop, 2))
    found = list(reply.outputs[0].contents.int64_contents)
    width = len(found) // rows
    return [found[row * width : (row + 1) * width] for row in range(rows)]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_filter_is_a_parameter_of_the_open_inference_protocol(shop: Shop, rows: int) -> None:
    gone = set(range(shop.items)) - matching(shop, 2)
    request = api.RecommendRequest(item_ids=[3, 8])
    wanted, _ = best_visible(request, shop.embeddings, gone, shop.fallback, LIMIT)
    assert infer(shop, rows, {"filter": FILTERS[2][0], "filter.most": 0.1}) == [wanted.item_ids] * rows


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"filter": "item.prize > 1.0"}, "did you mean 'price'?"),
        ({"filter": 3}, "filter: it is a string"),
        ({"filter": "true || " * 256 + "true"}, "of 2048 bytes at most"),
        ({"filter.most": 3}, "it belongs to a filter"),
        ({"filter": "true", "filter.": 3}, "a name of 1 to 64 bytes"),
        ({"filter": "true", "filter.most": float("inf")}, "not a finite number"),
        ({"filter": "true", "filter.most": "x" * 2_000}, "longer than 1024 bytes"),
    ],
)
def test_a_parameter_that_is_no_filter_is_refused(shop: Shop, parameters: dict[str, str | float], why: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        infer(shop, 2, parameters)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert why in (refused.value.details() or "")


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (api.RecommendRequest(filter="item.prize > 1.0"), "at character 1: .*did you mean 'price'?"),
        (api.RecommendRequest(filter="item.price > params.p"), "there is no parameter 'p'"),
        (api.RecommendRequest(filter="item.price >"), "Syntax error"),
        (api.RecommendRequest(filter="true || " * 256 + "true"), "filter"),
        (api.RecommendRequest(filter_parameters={"p": _number(1)}), "filter_parameters: they belong to a filter"),
    ],
)
def test_a_filter_that_cannot_be_evaluated_is_an_invalid_argument_and_its_batch_mates_are_answered(
    shop: Shop, request_: api.RecommendRequest, why: str
) -> None:
    request_.item_ids[:] = [1]
    with pytest.raises(grpc.RpcError, match=why) as refused:
        shop.stub.Recommend(request_, timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    call = api.BatchRecommendRequest(requests=[api.RecommendRequest(item_ids=[1]), request_])
    answered, faulty = shop.stub.BatchRecommend(call, timeout=PATIENCE).results
    assert len(answered.response.item_ids) == LIMIT
    assert faulty.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
