"""Bearer tokens over a real channel: who is admitted, under which name, and with which limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from typer.testing import CliRunner

from recommender.api.metadata import PUSHBACK_KEY, SERVICE_NAME
from recommender.cli.main import app
from recommender.client import Client, Recommendations, Refusal, Request
from recommender.edges.open_inference import SERVICE_NAME as INFERENCE_NAME
from recommender.errors import QuotaError, StartError, UnauthenticatedError
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.security.access import Access, Grant, digest_of, new_token, read_grants
from tests.support.facts import FACTS
from tests.support.pages import read
from tests.support.process import running
from tests.support.programs import program, run
from tests.support.serving import AnyServer, Serve, Shared
from tests.support.statuses import status_of_call

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
TOKEN, KEEPER = new_token(), new_token()
METHODS = ("Recommend", "BatchRecommend", "StreamRecommend", "GetModel", "ListModels")


def table(name: str, *tokens: str, **fields: str) -> str:
    digests = ", ".join(f'"{digest_of(token).hex()}"' for token in tokens)
    lines = [f"[{name}]", f"sha256 = [{digests}]", *(f"{key} = {value}" for key, value in fields.items())]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def guarded(
    serve: Serve, folder: Path, *tables: str, **settings: object
) -> AsyncIterator[tuple[AnyServer, Path]]:
    path = folder / "tokens.toml"
    path.write_text("".join(tables), encoding="utf-8")
    async with serve(tokens_file=path, secrets_reload_ms=20, **settings) as server:
        yield server, path


@pytest.fixture(scope="module")
def web(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> AnyServer:
    """A server that lets the holder of TOKEN in; that of KEEPER may see to its catalogue only."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(table("web", TOKEN) + table("keeper", KEEPER, scopes='["catalogue"]'), encoding="utf-8")
    return shared(tokens_file=path, secrets_reload_ms=20)


async def code_of(call: object) -> grpc.StatusCode:
    try:
        await call  # type: ignore[misc]  # any call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_good_token_gets_its_answer(web: AnyServer) -> None:
    async with Client(f"127.0.0.1:{web.port}", token=TOKEN) as client:
        assert list((await client.recommend([0], timeout=TIMEOUT)).item_ids) == FACTS[0,]


AUTHORIZATIONS = (
    *(None, "", "Bearer", "Bearer ", "Bearer nonsense"),
    *(TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"),
)


@pytest.mark.parametrize("method", METHODS)
async def test_no_method_is_open_to_who_brings_no_good_token(web: AnyServer, method: str) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{web.port}") as channel:
        unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE_NAME}/{method}")
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE_NAME}/{method}")
        for authorization in AUTHORIZATIONS:
            metadata = () if authorization is None else (("authorization", authorization),)
            if method == "StreamRecommend":
                # Refused before it writes: grpc.aio reports any write to an ended stream as INTERNAL.
                call: Awaitable[object] = stream(metadata=metadata, timeout=TIMEOUT).read()
            else:
                call = unary(b"", metadata=metadata, timeout=TIMEOUT)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            # The same words for every cause, so that callers learn nothing from them.
            assert refused.value.details() == "send a valid token in the metadata, as `authorization: Bearer …`"


async def test_a_token_without_the_scope_of_a_call_is_denied_it_and_may_see_health(web: AnyServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{web.port}") as channel:

        async def ask(path: str) -> grpc.aio.AioRpcError | None:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            try:
                await method(b"", metadata=(("authorization", f"Bearer {KEEPER}"),), timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                return error
            return None

        unary = [f"/{SERVICE_NAME}/{method}" for method in METHODS if method != "StreamRecommend"]
        for path in (*unary, f"/{INFERENCE_NAME}/ModelInfer", f"/{INFERENCE_NAME}/ModelMetadata"):
            refused = await ask(path)
            assert refused is not None
            assert refused.code() == grpc.StatusCode.PERMISSION_DENIED
            assert refused.details() == "this token lacks the scope `recommend`: use another, or have it added"
        assert await ask("/grpc.health.v1.Health/Check") is None
    reflected = ("-plaintext", "-H", f"authorization: Bearer {KEEPER}", f"localhost:{web.port}", "list")
    code, _, err = await run(program("grpcurl"), *reflected)
    assert code == 0, err


async def test_an_expired_and_a_revoked_token_are_refused_like_a_wrong_one(serve: Serve, tmp_path: Path) -> None:
    old, gone = new_token(), new_token()
    tables = table("web", TOKEN), table("old", old, expires="2020-01-01T00:00:00Z"), table("gone", gone)
    async with guarded(serve, tmp_path, *tables) as (server, path):
        target = f"127.0.0.1:{server.port}"
        async with Client(target, token=old) as expired, Client(target, token=gone) as revoked:
            with pytest.raises(grpc.aio.AioRpcError) as first:
                await expired.recommend([0], timeout=TIMEOUT)
            await revoked.recommend([0], timeout=TIMEOUT)
            path.write_text("".join(tables[:2]), encoding="utf-8")
            async with asyncio.timeout(TIMEOUT):
                while await code_of(revoked.recommend([0], timeout=TIMEOUT)) == grpc.StatusCode.OK:
                    pass
            with pytest.raises(grpc.aio.AioRpcError) as second:
                await revoked.recommend([0], timeout=TIMEOUT)

    for refused in (first.value, second.value):
        assert refused.code() == grpc.StatusCode.UNAUTHENTICATED
        assert refused.details() == "send a valid token in the metadata, as `authorization: Bearer …`"


async def test_two_tokens_of_one_name_are_good_while_they_are_rotated(serve: Serve, tmp_path: Path) -> None:
    later = new_token()
    async with guarded(serve, tmp_path, table("web", TOKEN, later)) as (server, path):
        target = f"127.0.0.1:{server.port}"
        async with Client(target, token=TOKEN) as former, Client(target, token=later) as new:
            await former.recommend([0], timeout=TIMEOUT)
            path.write_text(table("web", later), encoding="utf-8")
            async with asyncio.timeout(TIMEOUT):
                while await code_of(former.recommend([0], timeout=TIMEOUT)) == grpc.StatusCode.OK:
                    pass
            await new.recommend([0], timeout=TIMEOUT)


async def test_a_tokens_file_that_cannot_be_read_any_more_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(table("web", TOKEN), encoding="utf-8")
    settings = {"RECOMMENDER_TOKENS_FILE": str(path), "RECOMMENDER_SECRETS_RELOAD_MS": "20"}
    async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}", token=TOKEN) as client:
        path.write_text("[web", encoding="utf-8")
        complaint = await server.until("files not reloaded: the previous ones stay in use")
        await client.recommend([0], timeout=TIMEOUT)

    assert "is not TOML" in complaint["reason"]


async def test_health_is_open_unless_it_is_told_to_need_a_token(web: AnyServer, serve: Serve, tmp_path: Path) -> None:
    async def check(server: AnyServer, **options: object) -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
            return await code_of(method(b"", timeout=TIMEOUT, **options))  # type: ignore[arg-type]

    assert await check(web) == grpc.StatusCode.OK
    async with guarded(serve, tmp_path, table("web", TOKEN), health_needs_token=True) as (server, _):
        assert await check(server) == grpc.StatusCode.UNAUTHENTICATED
        assert await check(server, metadata=(("authorization", f"bearer {TOKEN}"),)) == grpc.StatusCode.OK
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
                "/grpc.health.v1.Health/Watch"
            )
            assert await code_of(watch(b"", timeout=TIMEOUT).read()) == grpc.StatusCode.UNAUTHENTICATED


async def test_reflection_needs_a_token_where_others_do(web: AnyServer) -> None:
    target = f"localhost:{web.port}"
    code, _, err = await run(program("grpcurl"), "-plaintext", target, "list")
    assert (code != 0, "Unauthenticated" in err) == (True, True)
    bearer = ("-H", f"authorization: Bearer {TOKEN}")
    code, out, err = await run(program("grpcurl"), "-plaintext", *bearer, target, "list")
    assert code == 0, err
    assert SERVICE_NAME in out


async def test_reflection_that_is_off_is_not_there(serve: Serve) -> None:
    async with serve(reflection=False) as server:
        code, out, err = await run(program("grpcurl"), "-plaintext", f"localhost:{server.port}", "list")

    assert (code != 0, out) == (True, "")
    assert "does not support the reflection API" in err


async def test_more_calls_at_once_than_a_token_may_have_are_refused_with_a_time(serve: Serve, tmp_path: Path) -> None:
    tables = table("few", TOKEN, concurrent_calls="1"), table("many", "another")
    async with guarded(serve, tmp_path, *tables) as (server, _):
        target = f"127.0.0.1:{server.port}"
        async with Client(target, token=TOKEN) as few, Client(target, token="another") as many:  # noqa: S106
            release = asyncio.Event()

            async def held() -> AsyncIterator[Request]:
                yield Request(item_ids=[0])
                await release.wait()

            stream = few.stream(held(), timeout=TIMEOUT)
            await anext(stream)
            async with grpc.aio.insecure_channel(target) as channel:
                method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                    f"/{SERVICE_NAME}/Recommend"
                )
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await method(b"", metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=TIMEOUT)
            await many.recommend([0], timeout=TIMEOUT)
            release.set()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            await few.recommend([0], timeout=TIMEOUT)

    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.details() == "1 calls are open, which is the limit of this token; retry in 50 ms"
    assert dict(refused.value.trailing_metadata())[PUSHBACK_KEY] == "50"


async def test_requests_of_a_batch_call_and_of_a_stream_count_each(serve: Serve, tmp_path: Path) -> None:
    # A thousand seconds for one request: none returns during the test.
    limits = {"requests_per_second": "0.001", "burst": "5"}
    tokens = [new_token() for _ in range(3)]
    tables = [table(f"caller-{row}", token, **limits) for row, token in enumerate(tokens)]
    async with guarded(serve, tmp_path, *tables) as (server, _):
        target = f"127.0.0.1:{server.port}"
        async with Client(target, token=tokens[0]) as unary:
            codes = [await code_of(unary.recommend([0], timeout=TIMEOUT)) for _ in range(6)]
        async with Client(target, token=tokens[1]) as batch:
            requests = [Request(item_ids=[0])] * 3
            await batch.recommend_many(requests, timeout=TIMEOUT)
            second = await code_of(batch.recommend_many(requests, timeout=TIMEOUT))
        async with Client(target, token=tokens[2]) as stream:

            async def asked() -> AsyncIterator[Request]:
                for _ in range(7):
                    yield Request(item_ids=[0])

            outcomes = dict([outcome async for outcome in stream.stream(asked(), timeout=TIMEOUT)])

    assert codes == [grpc.StatusCode.OK] * 5 + [grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert second == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [isinstance(outcomes[row], Recommendations) for row in range(7)] == [True] * 5 + [False] * 2
    last = outcomes[6]
    assert isinstance(last, Refusal)
    assert last.code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_refusal_over_the_rate_says_when_to_come_back(serve: Serve, tmp_path: Path) -> None:
    async with (
        guarded(serve, tmp_path, table("web", TOKEN, requests_per_second="0.001", burst="1")) as (server, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE_NAME}/Recommend")
        good = api.RecommendRequest(item_ids=[0]).SerializeToString()
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        await method(good, metadata=metadata, timeout=TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(good, metadata=metadata, timeout=TIMEOUT)

    retry = error_details_pb2.RetryInfo()
    assert status_of_call(refused.value).details[0].Unpack(retry)
    assert 900 < retry.retry_delay.seconds <= 1000


async def test_the_log_says_whose_call_it_was_and_never_the_token(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(table("web", TOKEN), encoding="utf-8")
    settings = {"RECOMMENDER_TOKENS_FILE": str(path), "RECOMMENDER_LOG_LEVEL": "debug"}
    async with running(settings=settings) as server:
        async with Client(f"127.0.0.1:{server.port}", token="wrong") as client:  # noqa: S106
            await code_of(client.recommend([0], timeout=TIMEOUT))
        assert (await server.until("caller turned away"))["why"] == "unknown"

    assert "wrong" not in server.text
    assert TOKEN not in server.text
    assert digest_of(TOKEN).hex() not in server.text


def test_the_command_line_makes_a_token_and_its_table() -> None:
    made = CliRunner().invoke(app, ["token", "mobile app", "--days", "30"])
    grants = read_grants([made.stderr.encode()])

    assert made.exit_code == 0
    assert list(grants) == ["mobile app"]
    access = Access()
    access.replace(grants)
    assert access.enter(f"Bearer {made.stdout.strip()}").name == "mobile app"
    left = grants["mobile app"].expires
    assert left is not None
    assert timedelta(days=29) < left - datetime.now(UTC) < timedelta(days=31)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[web", "not TOML"),
        ("web = 1", "web: Input should be"),
        ("[web]\n", "web.sha256: Field required"),
        ('[web]\nsha256 = ["abc"]', r"web.sha256.0: String should match"),
        ("[web]\nsha256 = []", "web.sha256"),
        (table("web", "a", expires='"tomorrow"'), "web.expires"),
        (table("web", "a", expires="2030-01-01T00:00:00"), "web.expires: Input should have timezone"),
        (table("web", "a", requests_per_second="0"), "web.requests_per_second"),
        (table("web", "a", requests_per_second="inf"), "web.requests_per_second"),
        (table("web", "a", colour="1"), "web.colour: Extra inputs"),
        (table("web", "a") + table("app", "a"), "web and app have the same token"),
    ],
)
def test_a_tokens_file_at_fault_is_a_sentence_without_the_digest(content: str, message: str) -> None:
    with pytest.raises(StartError, match=message) as refused:
        read_grants([content.encode()])

    assert digest_of("a").hex() not in str(refused.value)


def grant(**limits: object) -> dict[str, Grant]:
    return {"web": Grant.model_validate({"sha256": [digest_of(TOKEN).hex()], **limits})}


def test_a_rate_comes_back_as_time_passes_and_no_further_than_the_burst() -> None:
    now = [100.0]
    access = Access(clock=lambda: now[0])
    access.replace(grant(requests_per_second=10, burst=2))

    def enter() -> float:
        try:
            access.enter(f"Bearer {TOKEN}")
        except QuotaError as error:
            return error.retry_after
        return 0.0

    assert [enter(), enter(), enter()] == [0.0, 0.0, pytest.approx(0.1)]
    now[0] += 0.1
    assert [enter(), enter()] == [0.0, pytest.approx(0.1)]
    now[0] += 1000
    assert [enter(), enter(), enter()] == [0.0, 0.0, pytest.approx(0.1)]


def test_a_call_of_more_than_the_burst_is_paid_back_afterwards() -> None:
    now = [0.0]
    access = Access(clock=lambda: now[0])
    access.replace(grant(requests_per_second=10, burst=5))
    access.enter(f"Bearer {TOKEN}", 25)

    with pytest.raises(QuotaError) as refused:
        access.enter(f"Bearer {TOKEN}")

    assert refused.value.retry_after == pytest.approx(2.1)


def test_a_token_expires_while_the_server_runs() -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    access = Access(now=lambda: now[0])
    access.replace(grant(expires="2026-01-02T00:00:00Z"))
    access.enter(f"Bearer {TOKEN}")
    now[0] = datetime(2026, 1, 2, tzinfo=UTC)

    with pytest.raises(UnauthenticatedError):
        access.enter(f"Bearer {TOKEN}")
    assert access.turned_away == {"expired": 1}


def test_limits_outlive_a_change_of_the_file() -> None:
    access = Access(clock=lambda: 0.0)
    access.replace(grant(requests_per_second=1, burst=1))
    access.enter(f"Bearer {TOKEN}")
    access.replace(grant(requests_per_second=1, burst=1))

    with pytest.raises(QuotaError):
        access.enter(f"Bearer {TOKEN}")


async def test_metrics_tell_what_each_name_asked_and_who_was_turned_away(serve: Serve, tmp_path: Path) -> None:
    tables = table("web", TOKEN, requests_per_second="0.001", burst="2")
    async with guarded(serve, tmp_path, tables, metrics_port=0) as (server, _):
        target = f"127.0.0.1:{server.port}"
        async with Client(target, token=TOKEN) as client:
            codes = [await code_of(client.recommend([0], timeout=TIMEOUT)) for _ in range(3)]
        async with Client(target) as stranger:
            codes.append(await code_of(stranger.recommend([0], timeout=TIMEOUT)))
        text = await asyncio.to_thread(read, f"http://127.0.0.1:{server.metrics_port}/metrics")

    assert [code.name for code in codes] == ["OK", "OK", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"]
    requests = 'recommender_token_requests_total{recommender_outcome="%s",recommender_token="web"} %s'
    assert requests % ("accepted", "2.0") in text
    assert requests % ("refused_rate", "1.0") in text
    assert 'recommender_callers_turned_away_total{recommender_reason="missing"} 1.0' in text
    assert 'rpc_response_status_code="UNAUTHENTICATED"' in text
