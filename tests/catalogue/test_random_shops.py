"""Shops that are drawn at random, tables and all, over the wire: every answer is what brute force makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from recommender.api.values import Feature, feature_value
from recommender.new_items import Floats
from recommender.recommend_api.v1 import catalogue_api_pb2 as capi
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.adding import TIMEOUT, Shop, new_item
from tests.support.catalogues import (
    add_vocabulary,
    every_batch_from_8_bits,
    export_catalogue,
    reference_embeddings,
)
from tests.support.serving import in_a_thread, server_of

SIZES = {"plain": 2_000, "coarse": 20_000}
DIM, BATCHES, TOLERANCE = 8, 4, 1e-4
Attributes: TypeAlias = Mapping[str, float | str | None]


@dataclass(frozen=True)
class Predicate:
    """A filter with its parameters, and whether an item of these attributes matches it."""

    text: str
    parameters: Mapping[str, Feature]
    matches: Callable[[Attributes], bool]


def below(share: float) -> Predicate:
    return Predicate("item.price < params.most", {"most": share}, lambda item: _number(item) < share)


def not_below(share: float) -> Predicate:
    return Predicate("!(item.price < params.least)", {"least": share}, lambda item: share <= _number(item) <= 1)


def of_brands(brands: Sequence[str]) -> Predicate:
    return Predicate("item.brand in params.brands", {"brands": tuple(brands)}, lambda item: item["brand"] in brands)


def _number(item: Attributes) -> float:
    """The price, or one that no comparison of the filters is true of."""
    price = item["price"]
    return 2.0 if price is None else float(price)


def joined(one: Predicate, other: Predicate, sign: str) -> Predicate:
    def matches(item: Attributes) -> bool:
        found = one.matches(item), other.matches(item)
        return all(found) if sign == "&&" else any(found)

    return Predicate(f"({one.text}) {sign} ({other.text})", {**one.parameters, **other.parameters}, matches)


shares = st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0])
brands = st.lists(st.sampled_from([f"brand {number}" for number in range(14)]), min_size=1, max_size=4, unique=True)
prices = st.builds(below, shares) | st.builds(not_below, shares)
predicates = st.one_of(
    prices,
    st.builds(of_brands, brands),
    st.builds(joined, prices, st.builds(of_brands, brands), st.sampled_from(["&&", "||"])),
    st.just(Predicate("!has(item.brand)", {}, lambda item: item["brand"] is None)),
)


class Drawn:
    """The contents of a shop: vectors, attributes, hidden and new items, all drawn with one seed."""

    def __init__(self, seed: int, items: int) -> None:
        random = np.random.default_rng(seed)
        self.seed, self.items = seed, items
        self.catalogue = [f"item {number}" for number in range(items)]
        self.new = [f"new {number}" for number in range(random.integers(0, 40))]
        self.vectors: dict[str, Floats] = dict(
            zip(self.catalogue, reference_embeddings(items, DIM, seed), strict=True)
        ) | {key: random.random(DIM + 1, np.float32) for key in self.new}
        self.keys = list(self.vectors)
        self.place = {key: place for place, key in enumerate(self.keys)}
        self.table = np.stack([np.resize(np.append(row, 0.0), DIM + 1) for row in self.vectors.values()])
        self.known: dict[str, Attributes] = {
            key: {
                "price": None if random.random() < 0.2 else float(random.random()),
                "brand": None if random.random() < 0.2 else f"brand {random.integers(0, 12)}",
            }
            for key in self.keys
        }
        chosen = random.random(len(self.vectors)) < random.choice([0.0, 0.01, 0.5])
        self.hidden = {key for key, hidden in zip(self.vectors, chosen, strict=True) if hidden}

    def write(self, folder: Path, *, coarse: bool) -> Path:
        """Write the model, and `items.parquet` with the attributes of the catalogue."""
        path = export_catalogue(folder, self.items, DIM, self.seed, coarse=coarse)
        add_vocabulary(path, self.catalogue)
        table = {name: [self.known[key][name] for key in self.catalogue] for name in ("price", "brand")}
        pa.parquet.write_table(
            pa.table(
                {
                    "key": self.catalogue,
                    "price": pa.array(table["price"], pa.float64()),
                    "brand": pa.array(table["brand"], pa.string()),
                }
            ),
            folder / "items.parquet",
        )
        return path

    async def stock(self, shop: Shop) -> None:
        """Add the new items, and hide the hidden ones."""
        if self.new:
            await shop.add(
                *(
                    new_item(
                        key,
                        self.vectors[key][:DIM],
                        float(self.vectors[key][DIM]),
                        {name: value for name, value in self.known[key].items() if value is not None},
                    )
                    for key in self.new
                )
            )
        hidden = sorted(self.hidden)
        for start in range(0, len(hidden), 1_000):
            part = hidden[start : start + 1_000]
            await shop.catalogue.HideItems(capi.HideItemsRequest(item_keys=part), timeout=TIMEOUT)
            async with asyncio.timeout(TIMEOUT):
                while (await shop.ask(item_ids=[0], candidate_item_keys=part)).item_keys:
                    pass

    def best(self, asked: api.RecommendRequest, wanted: Predicate | None) -> tuple[list[float], dict[str, float], int]:
        """The scores that a request must get, the items that it may get with theirs, and how many match its filter."""
        matching = {key for key in self.keys if wanted is None or wanted.matches(self.known[key])} - self.hidden
        allowed = matching - set(asked.excluded_item_keys)
        if asked.candidate_item_keys:
            allowed &= set(asked.candidate_item_keys)
        if asked.exclude_history:
            allowed -= set(asked.item_keys)
        user = np.mean([self.vectors[each] for each in asked.item_keys], axis=0, dtype=np.float64)
        scores = self.table[:, :DIM] @ user + self.table[:, DIM]
        own = {key: float(scores[self.place[key]]) for key in allowed}
        return sorted(own.values(), reverse=True)[: asked.limit], own, len(matching)


@st.composite
def batches(draw: st.DrawFn, shop: Drawn) -> list[tuple[api.RecommendRequest, Predicate | None]]:
    keys = st.sampled_from([*shop.catalogue[:50], *shop.new, *shop.catalogue])
    some = st.lists(keys, max_size=15, unique=True)
    rows = draw(
        st.lists(
            st.tuples(
                st.builds(
                    api.RecommendRequest,
                    item_keys=st.lists(st.sampled_from(shop.catalogue), min_size=1, max_size=9),
                    limit=st.one_of(st.integers(1, 30), st.integers(1, 1_000)),
                    excluded_item_keys=st.one_of(st.just([]), some),
                    candidate_item_keys=st.one_of(st.just([]), st.just([]), some),
                    exclude_history=st.booleans(),
                ),
                st.none() | predicates,
            ),
            min_size=1,
            max_size=12,
        )
    )
    for request, wanted in rows:
        if wanted is not None:
            request.filter = wanted.text
            for name, value in wanted.parameters.items():
                request.filter_parameters[name].CopyFrom(feature_value(value))
    return rows


@pytest.mark.slow
@pytest.mark.both_edges
@pytest.mark.parametrize("kind", SIZES)
def test_every_answer_of_a_shop_is_that_of_brute_force(kind: str, edge: Edge) -> None:
    @settings(
        max_examples=3,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each try to shrink a failure would start a server
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(seed=st.integers(0, 2**31 - 1), data=st.data())
    def check(seed: int, data: st.DataObject) -> None:
        drawn = Drawn(seed, SIZES[kind])
        asked = [data.draw(batches(drawn)) for _ in range(BATCHES)]
        with TemporaryDirectory() as folder, every_batch_from_8_bits():
            wanted = Settings(
                port=0,
                edge=edge,
                model=drawn.write(Path(folder), coarse=kind == "coarse"),
                items=Path(folder) / "items.parquet",
                default_timeout_ms=60_000,
                catalogue_writes=True,
                catalogue_journal=Path(folder) / "journal.sqlite",
            )
            with in_a_thread(lambda: server_of(wanted)) as server:
                asyncio.run(compare(server.port, drawn, asked))

    check()


async def compare(
    port: int, drawn: Drawn, asked: Sequence[Sequence[tuple[api.RecommendRequest, Predicate | None]]]
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        shop = Shop(channel, 0)
        shop.vectors |= drawn.vectors
        await drawn.stock(shop)
        for rows in asked:
            call = api.BatchRecommendRequest(requests=[request for request, _ in rows])
            reply = await shop.service.BatchRecommend(call, timeout=TIMEOUT)
            for (request, wanted), result in zip(rows, reply.results, strict=True):
                assert result.WhichOneof("outcome") == "response", (request, result.error)
                best, allowed, matching = drawn.best(request, wanted)
                got = result.response
                assert len(set(got.item_keys)) == len(got.item_keys) == len(best), request
                assert set(got.item_keys) <= allowed.keys(), request
                assert np.allclose(got.scores, best, atol=TOLERANCE), request
                assert np.allclose(got.scores, [allowed[key] for key in got.item_keys], atol=TOLERANCE), request
                assert got.HasField("matching_items") is (wanted is not None)
                assert wanted is None or got.matching_items == matching, request
