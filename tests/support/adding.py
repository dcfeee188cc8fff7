"""New items that a test adds, and brute force that knows of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt

from recommender.api.values import Feature, feature_value
from recommender.new_items import Floats
from recommender.recommend_api.v1 import catalogue_api_pb2 as capi
from recommender.recommend_api.v1 import catalogue_api_pb2_grpc as capi_grpc
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from tests.support.catalogues import add_vocabulary, export_catalogue, reference_embeddings

TIMEOUT = 30.0


def new_item(
    key: str, vector: Sequence[float] | Floats, bias: float = 0.0, attributes: Mapping[str, Feature] | None = None
) -> capi.NewItem:
    item = capi.NewItem(key=key, vector=vector, bias=bias)
    for name, value in (attributes or {}).items():
        item.attributes[name].CopyFrom(feature_value(value))
    return item


def exported_shop(folder: Path, items: int, *, coarse: bool = False) -> Path:
    """A reference model of the keys `item 0` and so on; `coarse` adds a table in 8 bits."""
    path = export_catalogue(folder, items, coarse=coarse)
    add_vocabulary(path, [f"item {number}" for number in range(items)])
    return path


class Shop:
    """Both services of one server, and what it ought to rank."""

    def __init__(self, channel: grpc.aio.Channel, items: int) -> None:
        self.catalogue = capi_grpc.CatalogueServiceStub(channel)
        self.service = api_grpc.RecommenderServiceStub(channel)
        self.vectors: dict[str, Floats] = {
            f"item {number}": row for number, row in enumerate(reference_embeddings(items))
        }
        self.label = ""

    async def add(self, *items: capi.NewItem) -> capi.UpsertItemsResponse:
        """Add items, and wait until they are ranked."""
        self.label = self.label or await self._label()
        reply = await self.catalogue.UpsertItems(
            capi.UpsertItemsRequest(model=self.label, items=items), timeout=TIMEOUT
        )
        self.vectors |= {item.key: np.array([*item.vector, item.bias], np.float32) for item in items}
        await self._settled([item.key for item in items], there=True)
        return reply

    async def remove(self, *keys: str) -> capi.RemoveItemsResponse:
        """Remove items, and wait until they are not ranked."""
        reply = await self.catalogue.RemoveItems(capi.RemoveItemsRequest(item_keys=keys), timeout=TIMEOUT)
        for key in keys:
            self.vectors.pop(key, None)
        await self._settled(keys, there=False)
        return reply

    async def ask(self, **fields: object) -> api.RecommendResponse:
        """What a request of these fields gets."""
        return await self.service.Recommend(api.RecommendRequest(**fields), timeout=TIMEOUT)  # type: ignore[arg-type]

    async def states(self) -> dict[str, str]:
        """The state of every new item, by its key."""
        reply = await self.catalogue.ListNewItems(capi.ListNewItemsRequest(), timeout=TIMEOUT)
        return {each.key: capi.NewItemState.Name(each.state).removeprefix("NEW_ITEM_STATE_") for each in reply.items}

    async def come_to(self, wanted: Mapping[str, str]) -> None:
        """Wait until the new items have these states: their list follows a new version by a moment."""
        async with asyncio.timeout(TIMEOUT):
            while await self.states() != wanted:
                pass

    def scores(self, history: Sequence[str]) -> dict[str, float]:
        """The score of each item for a history of the catalogue's items."""
        user: npt.NDArray[np.float64] = np.stack([self.vectors[key] for key in history]).mean(axis=0, dtype=np.float64)
        return {key: float(row[: len(user)] @ user + row[len(user) :].sum()) for key, row in self.vectors.items()}

    async def _settled(self, keys: Sequence[str], *, there: bool) -> None:
        async with asyncio.timeout(TIMEOUT):
            while True:
                scores = self.scores(["item 0"])
                reply = await self.ask(item_keys=["item 0"], candidate_item_keys=keys, limit=min(len(keys), 200))
                got = dict(zip(reply.item_keys, reply.scores, strict=True))
                if not there and not got:
                    return
                if there and got.keys() == set(keys) and all(abs(got[key] - scores[key]) < 1e-4 for key in keys):
                    return

    async def _label(self) -> str:
        models = (await self.service.ListModels(api.ListModelsRequest(), timeout=TIMEOUT)).models
        return f"{models[0].name}@{models[0].version}"


@asynccontextmanager
async def shopping(port: int, items: int) -> AsyncIterator[Shop]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Shop(channel, items)
