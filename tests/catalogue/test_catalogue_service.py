"""CatalogueService over the wire: what calls hide is in no answer, here and in every other worker, and stays so."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from recommender.errors import SettingsError
from recommender.recommend_api.v1 import catalogue_api_pb2 as capi
from recommender.recommend_api.v1 import catalogue_api_pb2_grpc as capi_grpc
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.security.access import digest_of, new_token
from recommender.settings.settings import Settings
from tests.support.asking import typed
from tests.support.hiding import write_list
from tests.support.process import running
from tests.support.programs import program, run
from tests.support.serving import AnyServer, Serve, Shared
from tests.support.versions import embeddings_of, write_version

ITEMS, TIMEOUT = 50, 30.0
NO_PAGE = capi.ListHiddenItemsRequest(page_token="[1")  # noqa: S106 (no password)
pytestmark = pytest.mark.both_edges


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one version, with the keys `v1-0` and so on."""
    return write_version(tmp_path_factory.mktemp("models") / "shop" / "1", 1, keys=ITEMS, fallback=(7, 3, 11)).parent


@pytest.fixture(scope="module")
def shop(model: Path, shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> AnyServer:
    return shared(
        model=model,
        num_recommendations=5,
        catalogue_writes=True,
        catalogue_journal=tmp_path_factory.mktemp("kept") / "journal.sqlite",
    )


class Caller:
    """Both services of one server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.catalogue = capi_grpc.CatalogueServiceStub(channel)
        self.items = api_grpc.RecommenderServiceStub(channel)

    async def hide(self, *keys: str) -> capi.HideItemsResponse:
        return await self.catalogue.HideItems(capi.HideItemsRequest(item_keys=keys), timeout=TIMEOUT)

    async def show(self, *keys: str) -> capi.ShowItemsResponse:
        return await self.catalogue.ShowItems(capi.ShowItemsRequest(item_keys=keys), timeout=TIMEOUT)

    async def visible(self) -> set[int]:
        """Every item that an answer may hold."""
        reply = await self.items.Recommend(api.RecommendRequest(item_ids=[0], limit=ITEMS), timeout=TIMEOUT)
        return set(reply.item_ids)

    async def sees(self, hidden: set[int]) -> None:
        """Wait until exactly these are hidden."""
        async with asyncio.timeout(TIMEOUT):
            while await self.visible() != set(range(ITEMS)) - hidden:
                pass


@asynccontextmanager
async def calling(port: int) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Caller(channel)


async def test_hidden_items_are_in_no_answer_until_they_are_shown(shop: AnyServer) -> None:
    async with calling(shop.port) as caller:
        first = await caller.hide("v1-7", "v1-3", "v1-7", "another shop's")
        second = await caller.hide("v1-3")
        await caller.sees({3, 7})
        fallback = await caller.items.Recommend(api.RecommendRequest(limit=3), timeout=TIMEOUT)
        listed = await caller.catalogue.ListHiddenItems(capi.ListHiddenItemsRequest(page_size=2), timeout=TIMEOUT)
        following = capi.ListHiddenItemsRequest()
        following.page_token = listed.next_page_token
        rest = await caller.catalogue.ListHiddenItems(following, timeout=TIMEOUT)
        shown = await caller.show("v1-3", "v1-7", "another shop's", "never hidden")
        await caller.sees(set())

    assert (first.changed, first.hidden, list(first.unknown_item_keys)) == (3, 3, ["another shop's"])
    assert (second.changed, second.hidden) == (0, 3)
    assert list(fallback.item_ids) == [11]
    assert [item.item_key for item in (*listed.items, *rest.items)] == ["another shop's", "v1-3", "v1-7"]
    assert rest.next_page_token == ""
    assert (shown.changed, shown.hidden) == (3, 0)


async def test_ids_are_those_of_one_version(shop: AnyServer) -> None:
    async with calling(shop.port) as caller:
        request = capi.HideItemsRequest(item_ids=[4, 9], model="shop@1")
        assert (await caller.catalogue.HideItems(request, timeout=TIMEOUT)).changed == 2
        await caller.hide("v1-4")
        await caller.sees({4, 9})
        listed = await caller.catalogue.ListHiddenItems(capi.ListHiddenItemsRequest(), timeout=TIMEOUT)
        for former in ("shop@1", "shop@0"):
            await caller.catalogue.ShowItems(capi.ShowItemsRequest(item_ids=[4, 9], model=former), timeout=TIMEOUT)
        await caller.sees({4})
        await caller.show("v1-4")
        await caller.sees(set())

    assert [(item.item_key, item.item_id, item.model) for item in listed.items] == [
        ("v1-4", 0, ""),
        ("", 4, "shop@1"),
        ("", 9, "shop@1"),
    ]


@pytest.mark.parametrize(
    ("request_", "code", "sentence"),
    [
        (capi.HideItemsRequest(), "INVALID_ARGUMENT", "item_keys"),
        (capi.HideItemsRequest(item_ids=[1]), "INVALID_ARGUMENT", "ids need `model`"),
        (capi.HideItemsRequest(item_keys=["a"], model="shop@1"), "INVALID_ARGUMENT", "ids need `model`"),
        (capi.HideItemsRequest(item_ids=[1], model="shop"), "INVALID_ARGUMENT", "names no version"),
        (capi.HideItemsRequest(item_ids=[1, 50], model="shop@1"), "INVALID_ARGUMENT", "item_ids[1]: 50 is not an item"),
        (capi.HideItemsRequest(item_ids=[1], model="shop@7"), "NOT_FOUND", "no model 'shop@7' is served"),
        (capi.HideItemsRequest(item_keys=["a"] * 1001), "INVALID_ARGUMENT", "item_keys"),
        (capi.HideItemsRequest(item_keys=[""] * 4000), "INVALID_ARGUMENT", "may have 3000 fields"),
        (NO_PAGE, "INVALID_ARGUMENT", "is not from `next_page_token`"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said(
    shop: AnyServer, request_: capi.HideItemsRequest | capi.ListHiddenItemsRequest, code: str, sentence: str
) -> None:
    async with calling(shop.port) as caller:
        if isinstance(request_, capi.HideItemsRequest):
            call: Awaitable[object] = caller.catalogue.HideItems(request_, timeout=TIMEOUT)
        else:
            call = caller.catalogue.ListHiddenItems(request_, timeout=TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call

    assert refused.value.code() == grpc.StatusCode[code]
    assert sentence in (refused.value.details() or "")


async def test_reflection_and_the_command_line_know_the_service(shop: AnyServer, tmp_path: Path) -> None:
    where = ("--host", "127.0.0.1", "--port", str(shop.port))
    code, out, err = await run(
        program("grpcurl"), "-plaintext", f"localhost:{shop.port}", "describe", "recommend_api.v1.CatalogueService"
    )
    file = tmp_path / "more.txt"
    write_list(file, ["v1-2", "nobody's"])
    hidden = await typed("items", "hide", "v1-1", "--from", str(file), *where)
    by_id = await typed("items", "hide", "5", "--model", "shop@1", *where)
    listed = await typed("items", "list", *where)
    shown = await typed("items", "show", "v1-1", "v1-2", "nobody's", *where)
    await typed("items", "show", "5", "--model", "shop@1", *where)

    assert (code, "Hides items." in out) == (0, True), err
    # The log of the server in this process precedes it.
    assert hidden.stdout.endswith("3 hidden; 3 are hidden by calls now\n")
    assert hidden.stderr == "no version has nobody's\n"
    assert by_id.stdout.endswith("1 hidden; 4 are hidden by calls now\n")
    assert listed.stdout == "nobody's\nv1-1\nv1-2\nshop@1\t5\n"
    assert shown.stdout.endswith("3 shown; 1 are hidden by calls now\n")
    wrong = await typed("items", "hide", "v1-1", "--model", "shop@1", *where)
    assert (wrong.exit_code, "is not an item id" in wrong.stderr) == (2, True)


async def test_a_server_that_takes_no_changes_has_no_such_service(server: AnyServer) -> None:
    refused = await typed("items", "hide", "a", "--host", "127.0.0.1", "--port", str(server.port))

    assert refused.exit_code == 1
    assert "takes no changes: RECOMMENDER_CATALOGUE_WRITES=true lets it" in refused.stderr


async def test_changes_need_a_token_with_the_scope(serve: Serve, model: Path, tmp_path: Path) -> None:
    reader, keeper = new_token(), new_token()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        f'[reader]\nsha256 = ["{digest_of(reader).hex()}"]\n'
        f'[keeper]\nsha256 = ["{digest_of(keeper).hex()}"]\nscopes = ["catalogue"]\n',
        encoding="utf-8",
    )
    kept = {"catalogue_writes": True, "catalogue_journal": tmp_path / "journal.sqlite"}
    async with (
        serve(model=model, num_recommendations=5, tokens_file=tokens, **kept) as started,
        calling(started.port) as caller,
    ):

        async def code_of(token: str) -> grpc.StatusCode:
            request = capi.HideItemsRequest(item_keys=["v1-1"])
            metadata = (("authorization", f"Bearer {token}"),)
            try:
                await caller.catalogue.HideItems(request, timeout=TIMEOUT, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        assert await code_of("nobody's") == grpc.StatusCode.UNAUTHENTICATED
        assert await code_of(reader) == grpc.StatusCode.PERMISSION_DENIED
        assert await code_of(keeper) == grpc.StatusCode.OK


@pytest.mark.parametrize("edge", ["grpc"])  # the other has one worker
async def test_other_workers_follow_the_journal_and_lists_hold_beside_it(
    serve: Serve, model: Path, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden.txt"
    write_list(hidden, ["v1-1"])
    together = {
        "model": model,
        "num_recommendations": 5,
        "catalogue_writes": True,
        "catalogue_journal": tmp_path / "journal.sqlite",
        "hidden_items": str(hidden),
        "hidden_items_poll_ms": 10,
    }
    async with (
        serve(**together) as one,
        serve(**together) as other,
        calling(one.port) as first,
        calling(other.port) as second,
    ):
        await asyncio.gather(first.hide("v1-1", "v1-2"), second.hide("v1-3"))
        for caller in (first, second):
            await caller.sees({1, 2, 3})
        write_list(hidden, ["v1-4"])
        await second.show("v1-1", "v1-2")
        for caller in (first, second):
            await caller.sees({3, 4})
        best = (await first.items.Recommend(api.RecommendRequest(item_ids=[0]), timeout=TIMEOUT)).item_ids
    wanted = (embeddings_of(1) @ embeddings_of(1)[0]).argsort()[::-1].tolist()
    assert list(best) == [item for item in wanted if item not in {3, 4}][:5]


@pytest.mark.slow
async def test_what_was_acknowledged_outlives_a_kill(model: Path, tmp_path: Path) -> None:
    server = {
        "RECOMMENDER_MODEL": str(model),
        "RECOMMENDER_NUM_RECOMMENDATIONS": "5",
        "RECOMMENDER_CATALOGUE_WRITES": "true",
        "RECOMMENDER_CATALOGUE_JOURNAL": str(tmp_path / "journal.sqlite"),
    }
    acknowledged: list[int] = []
    async with running(settings=server) as first, calling(first.port) as caller:

        async def hide_one_after_another() -> None:
            for item in range(ITEMS):
                await caller.hide(f"v1-{item}")
                acknowledged.append(item)
                if item == 20:
                    first.signal(signal.SIGKILL)

        with pytest.raises(grpc.aio.AioRpcError):
            await hide_one_after_another()
        await first.exit_code()
    async with running(settings=server) as second, calling(second.port) as caller:
        visible = await caller.visible()

    assert len(acknowledged) > 20
    assert not visible & set(acknowledged)
    assert visible >= set(range(len(acknowledged) + 1, ITEMS))


def test_changes_by_anybody_are_refused_at_the_start(tmp_path: Path) -> None:
    writes = {"catalogue_writes": True, "catalogue_journal": tmp_path / "journal.sqlite"}
    assert Settings(**writes).catalogue.catalogue_writes
    open_to_all = {"host": "192.0.2.1", "plaintext": True}
    Settings(**writes, **open_to_all, tokens_file=tmp_path / "tokens.toml")
    with pytest.raises(SettingsError, match="would let any caller hide items"):
        Settings(**writes, **open_to_all)
    with pytest.raises(SettingsError, match="needs RECOMMENDER_CATALOGUE_JOURNAL"):
        Settings(catalogue_writes=True)
