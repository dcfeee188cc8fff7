"""Boosts and bounds over the wire: every answer is that of the definition in the proto, applied to all items."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommender.recommend_api.v1 import catalogue_api_pb2 as capi
from recommender.recommend_api.v1 import catalogue_api_pb2_grpc as capi_grpc
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.adding import exported_shop, new_item
from tests.support.catalogues import add_fallback, every_batch_from_8_bits, reference_embeddings
from tests.support.hiding import write_list
from tests.support.serving import PATIENCE, in_a_thread, server_of

pytestmark = pytest.mark.both_edges
PLAIN, COARSE, NEW = 1_200, 66_000, 20
"""Items of a model, of one with a table in 8 bits, and new ones."""
FALLBACK = list(range(60))
BRANDS = ["acme", "bolt", "core", None]


def attributes_of(number: int) -> dict[str, Any]:
    """Of brands most items have one, which the best items have too."""
    brand = BRANDS[0] if number % 5 else BRANDS[1 + number // 5 % 3]
    return {"brand": brand, "price": number / 4, "shelf": number % 7, "tags": ["x"], "fresh": number % 3 == 0}


FILTERS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "item.brand == 'bolt'": lambda own: own["brand"] == "bolt",
    "item.price < 40.0": lambda own: own["price"] < 40.0,
    "item.fresh": lambda own: own["fresh"],
    "item.price > 1000.0": lambda own: own["price"] > 1000.0,
    "has(item.price)": lambda _: True,
}


class Catalogue:
    """The items of a model and the new ones, which come after them, with their attributes."""

    def __init__(self, items: int) -> None:
        numbers = [*range(items), *range(NEW)]
        self.items = items
        self.keys = [f"item {number}" for number in range(items)] + [f"new {number}" for number in range(NEW)]
        self.attributes = {key: attributes_of(number) for key, number in zip(self.keys, numbers, strict=True)}
        self.vectors = reference_embeddings(items + NEW).astype(np.float64)
        self.vectors[items::2] *= -1
        self.hidden = {*self.keys[5::17], "new 3", "new 4"}
        self.visible = np.array([key not in self.hidden for key in self.keys])
        self.selected = {
            text: np.array([selects(own) for own in self.attributes.values()]) for text, selects in FILTERS.items()
        }

    def boosted(self, request: api.RecommendRequest) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The boosted score of each item, and the model's."""
        scores = self.vectors @ self.vectors[list(request.item_ids)].mean(axis=0)
        boosted = scores
        for boost in request.boosts:
            if boost.WhichOneof("effect") == "factor":
                changed = np.where(boosted < 0, boosted / boost.factor, boosted * boost.factor)
            else:
                changed = boosted + boost.addend
            boosted = np.where(self.selected[boost.filter], changed, boosted)
        return boosted, scores

    def wanted(self, request: api.RecommendRequest) -> list[tuple[str, float]]:
        """The answer by the definition: sort everything, then take what may be taken."""
        boosted, scores = self.boosted(request)
        filtered = self.visible & self.selected[request.filter] if request.filter else self.visible
        taken: list[tuple[str, float]] = []
        counts: Counter[tuple[str, object]] = Counter()
        for place in np.lexsort((-scores, -boosted)).tolist():
            key = self.keys[place]
            if len(taken) == request.limit:
                break
            if not filtered[place] or key in request.excluded_item_keys:
                continue
            if request.candidate_item_keys and key not in request.candidate_item_keys:
                continue
            own = {bound.attribute: self.attributes[key][bound.attribute] for bound in request.max_per}
            if any(
                own[each.attribute] is not None and counts[each.attribute, own[each.attribute]] >= each.n
                for each in request.max_per
            ):
                continue
            counts.update((name, value) for name, value in own.items())
            taken.append((key, float(boosted[place])))
        return taken


@dataclass(frozen=True, slots=True)
class Shop:
    """A server, and the catalogue that it recommends from."""

    stub: api_grpc.RecommenderServiceStub
    catalogue: Catalogue


@pytest.fixture(scope="module", params=[PLAIN, pytest.param(COARSE, marks=pytest.mark.slow)], ids=["plain", "coarse"])
def catalogue(request: pytest.FixtureRequest) -> Catalogue:
    return Catalogue(request.param)


@pytest.fixture(scope="module")
def model(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = exported_shop(tmp_path_factory.mktemp("model"), catalogue.items, coarse=catalogue.items == COARSE)
    add_fallback(path, FALLBACK)
    with every_batch_from_8_bits():
        yield path


@pytest.fixture(scope="module")
def shop(catalogue: Catalogue, model: Path, tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("rules")
    table = folder / "items.jsonl"
    lines = [json.dumps({"key": f"item {number}", **attributes_of(number)}) for number in range(catalogue.items)]
    table.write_text("\n".join(lines), encoding="utf-8")
    write_list(folder / "hidden.txt", sorted(catalogue.hidden))
    known = Settings(
        port=0,
        model=model,
        num_recommendations=10,
        edge=edge,
        default_timeout_ms=60_000,
        items=table,
        hidden_items=str(folder / "hidden.txt"),
        catalogue_writes=True,
        catalogue_journal=folder / "journal.sqlite",
    )
    with (
        in_a_thread(lambda: server_of(known)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        items = [
            new_item(
                f"new {number}",
                catalogue.vectors[catalogue.items + number],
                attributes={name: value for name, value in attributes_of(number).items() if value is not None},
            )
            for number in range(NEW)
        ]
        request = capi.UpsertItemsRequest(model="reference@1", items=items)
        capi_grpc.CatalogueServiceStub(channel).UpsertItems(request, timeout=PATIENCE)
        asked = api_grpc.RecommenderServiceStub(channel)
        last = api.RecommendRequest(item_ids=[0], candidate_item_keys=["new 19"])
        while not asked.Recommend(last, timeout=PATIENCE).item_keys:
            pass
        yield Shop(asked, catalogue)


BOOSTS = st.one_of(
    st.builds(api.Boost, filter=st.sampled_from([*FILTERS]), factor=st.sampled_from([0.3, 1.0, 1.7, 40.0])),
    st.builds(api.Boost, filter=st.sampled_from([*FILTERS]), addend=st.sampled_from([-3.0, -0.1, 0.7, 5.0])),
)
BOUNDS = st.builds(api.MaxPer, attribute=st.sampled_from(["brand", "shelf", "fresh"]), n=st.integers(1, 6))
KEYS = st.lists(
    st.sampled_from([f"item {number}" for number in range(PLAIN)] + [f"new {number}" for number in range(NEW)]),
    max_size=60,
    unique=True,
)
REQUESTS = st.builds(
    api.RecommendRequest,
    item_ids=st.lists(st.integers(0, PLAIN - 1), min_size=1, max_size=5),
    limit=st.integers(1, 60),
    boosts=st.lists(BOOSTS, max_size=4),
    max_per=st.lists(BOUNDS, max_size=2, unique_by=lambda bound: bound.attribute),
    filter=st.sampled_from(["", "", *FILTERS]),
    excluded_item_keys=KEYS,
    candidate_item_keys=st.one_of(st.just([]), KEYS),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(REQUESTS, min_size=1, max_size=6))
def test_answers_are_those_of_the_definition(shop: Shop, asked: list[api.RecommendRequest]) -> None:
    results = shop.stub.BatchRecommend(api.BatchRecommendRequest(requests=asked), timeout=PATIENCE).results
    for request, result in zip(asked, results, strict=True):
        assert result.WhichOneof("outcome") == "response", result.error
        compare(shop.catalogue, request, result.response)


def compare(catalogue: Catalogue, request: api.RecommendRequest, reply: api.RecommendResponse) -> None:
    """Compare a reply with the definition. Items whose scores rounding cannot separate may change places."""
    expected = catalogue.wanted(request)
    if request.filter:
        assert reply.matching_items == (catalogue.visible & catalogue.selected[request.filter]).sum(), request
    everything = dict(zip(catalogue.keys, catalogue.boosted(request)[0], strict=True))
    assert len({*reply.item_keys}) == len(reply.item_keys) == len(expected), request
    for told in ([score for _, score in expected], [everything[key] for key in reply.item_keys]):
        assert np.allclose(reply.scores, told, rtol=1e-5, atol=1e-4), request


def test_items_far_down_are_lifted_to_the_top(shop: Shop) -> None:
    """More than the server looks at before it divides the items into groups."""
    lifted = api.Boost(filter="item.brand == 'bolt'", addend=5.0)
    lowered = api.Boost(filter="item.fresh", factor=0.3)
    for boosts in ([lifted], [lowered, lifted], [lifted, lowered, api.Boost(filter="item.price < 40.0", factor=40.0)]):
        request = api.RecommendRequest(item_ids=[1, 2], limit=90, boosts=boosts)
        reply = shop.stub.Recommend(request, timeout=PATIENCE)
        compare(shop.catalogue, request, reply)


def test_a_bound_that_hides_nearly_all_looks_through_the_whole_catalogue(shop: Shop) -> None:
    request = api.RecommendRequest(item_ids=[3], limit=10, max_per=[api.MaxPer(attribute="brand", n=1)])
    reply = shop.stub.Recommend(request, timeout=PATIENCE)
    brands = [shop.catalogue.attributes[key]["brand"] for key in reply.item_keys]
    assert len(brands) == 10
    assert Counter(brand for brand in brands if brand) == {"acme": 1, "bolt": 1, "core": 1}
    compare(shop.catalogue, request, reply)


def test_a_fallback_list_keeps_bounds_and_its_order(shop: Shop) -> None:
    request = api.RecommendRequest(limit=60, max_per=[api.MaxPer(attribute="shelf", n=2)])
    request.boosts.add(filter="item.price > 2.0", addend=5.0)
    reply = shop.stub.Recommend(request, timeout=PATIENCE)
    assert reply.source == api.SOURCE_FALLBACK
    assert "item 5" in shop.catalogue.hidden
    assert [*reply.item_ids] == [item for item in range(14) if item != 5] + [19]


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"boosts": [api.Boost(filter="item.price > 1.0")]}, "boosts[0]"),
        ({"boosts": [api.Boost(filter="item.prize > 1.0", factor=2.0)]}, "boosts[0].filter: at character 1: the table"),
        ({"boosts": [api.Boost(filter="item.fresh", factor=0.0)]}, "boosts[0].factor"),
        ({"boosts": [api.Boost(filter="item.fresh", factor=-1.0)]}, "boosts[0].factor"),
        ({"boosts": [api.Boost(filter="item.fresh", factor=2.0)] * 5}, "boosts"),
        ({"max_per": [api.MaxPer(attribute="brand")]}, "max_per[0].n"),
        ({"max_per": [api.MaxPer(attribute="brnd", n=1)]}, "max_per[0].attribute: the table of items has no attribute"),
        ({"max_per": [api.MaxPer(attribute="price", n=1)]}, "'price' is a double"),
        ({"max_per": [api.MaxPer(attribute="tags", n=1)]}, "'tags' is a list of strings"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said(shop: Shop, rules: Mapping[str, object], sentence: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        shop.stub.Recommend(api.RecommendRequest(item_ids=[1], **rules), timeout=PATIENCE)  # type: ignore[arg-type]
    call: Any = refused.value  # what a failed call raises is the call as well; the stubs do not say so
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in (call.details() or "")
