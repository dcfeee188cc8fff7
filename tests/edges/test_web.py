"""Callers without gRPC, behind Envoy: JSON by HTTP, gRPC-Web, and pages in a browser."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recommender.api.metadata import SERVICE_NAME
from recommender.client import feature_value
from recommender.edges.envoy.framing import Frames, framed
from recommender.errors import SettingsError
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.security.access import digest_of, new_token
from recommender.server.envoy import EnvoyServer
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.catalogues import add_vocabulary, export_catalogue
from tests.support.facts import FACTS
from tests.support.feature_models import vector_of
from tests.support.models import brute_force
from tests.support.paths import ROOT, WEIGHTS
from tests.support.serving import Serve, in_a_thread
from tests.support.versions import embeddings_of, write_version

TIMEOUT = 30.0
HISTORY, ANSWER = next(iter(FACTS.items()))
JSON = {"content-type": "application/json"}
GRPC_WEB = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
SHOP = "https://shop.example"
LOCAL = "http://localhost:8000"


@pytest.fixture(scope="session")
def edge() -> Edge:
    return "envoy"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a server at the default settings, but for what this page is about."""
    settings = Settings(port=0, weights_dir=WEIGHTS, edge="envoy", web=True, cors_origins=f"{SHOP}, {LOCAL}")
    with in_a_thread(lambda: EnvoyServer(settings)) as server:
        yield server.port


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


async def ask(port: int, method: str, body: bytes | object, headers: Mapping[str, str], verb: str = "POST") -> Answer:
    """What a caller without gRPC gets; an object goes as JSON."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()

    def now() -> Answer:
        connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        try:
            connection.request(verb, f"/{SERVICE_NAME}/{method}", sent, dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    return await asyncio.to_thread(now)


async def test_json_in_json_out_with_the_known_answers(port: int) -> None:
    answers = [await ask(port, "Recommend", {"itemIds": list(ids)}, JSON) for ids in FACTS]
    many = await ask(port, "BatchRecommend", {"requests": [{"itemIds": HISTORY}, {"itemIds": [-1]}]}, JSON)
    model = await ask(port, "GetModel", {}, JSON)
    messages = [{"correlationId": place, "request": {"itemIds": HISTORY}} for place in range(3)]
    stream = await ask(port, "StreamRecommend", messages, JSON)

    assert [answer.said["itemIds"] for answer in answers] == list(FACTS.values())
    good, bad = many.said["results"]
    assert good["response"]["itemIds"] == ANSWER
    assert bad["error"]["code"] == 3
    assert model.said["model"]["name"] == "reference"
    assert sorted(reply.get("correlationId", "0") for reply in stream.said) == ["0", "1", "2"]
    assert all(reply["response"]["itemIds"] == ANSWER for reply in stream.said)


@pytest.mark.parametrize("host", ["", "Host: upstream\r\n"])
async def test_http_1_0_is_answered_as_proxies_speak_it_by_default(port: int, host: str) -> None:
    body = json.dumps({"itemIds": HISTORY})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = f"POST /{SERVICE_NAME}/Recommend HTTP/1.0\r\n{host}Content-Type: application/json\r\n"
    writer.write(f"{lines}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    async with asyncio.timeout(TIMEOUT):
        head, _, said = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()

    assert head.split(b"\r\n")[0] == b"HTTP/1.0 200 OK"
    assert json.loads(said)["itemIds"] == ANSWER


async def test_the_largest_answer_fits_into_json(port: int) -> None:
    requests = [{"itemIds": [1, row], "limit": 1000} for row in range(1000)]
    answer = await ask(port, "BatchRecommend", {"requests": requests}, {**JSON, "grpc-timeout": "30S"})

    assert [len(result["response"]["itemIds"]) for result in answer.said["results"]] == [1000] * 1000


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        ({"itemIds": [-1]}, {}, 400, 3),
        ({"itemIds": [1], "model": "none@such"}, {}, 404, 5),
        ({"itemIds": [1]}, {"grpc-timeout": "1n"}, 504, 4),
        ({"itemIds": [1] * 5_000_000}, {}, 429, 8),
    ],
    ids=["at fault", "no such model", "too late", "too large"],
)
async def test_an_error_is_a_status_of_http_and_in_json_with_its_details(
    port: int, body: object, headers: Mapping[str, str], status: int, code: int
) -> None:
    refused = await ask(port, "Recommend", body, {**JSON, **headers, "x-request-id": "mine"})

    assert (refused.status, refused.said["code"]) == (status, code)
    assert refused.headers["x-request-id"] == "mine"
    assert refused.said["message"]
    if code == 3:
        (detail,) = refused.said["details"]
        assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
        assert detail["fieldViolations"][0]["field"] == "item_ids[0]"


async def test_a_user_is_a_field_of_json_like_any_other(port: int) -> None:
    refused = await ask(port, "Recommend", {"itemIds": HISTORY, "userId": "9007199254740993"}, JSON)

    (detail,) = refused.said["details"]
    assert detail["fieldViolations"] == [
        {"field": "user_id", "description": "model reference@1 takes no user: leave user_id out"}
    ]


@pytest.mark.parametrize("body", [b'{"item', b"[]", b"\xff\xfe", b'{"itemIds": ["x"]}', b'{"itemIds": {}}'])
async def test_what_is_no_request_in_json_is_refused_and_harms_nobody(port: int, body: bytes) -> None:
    refused = await ask(port, "Recommend", body, JSON)
    answered = await ask(port, "Recommend", {"itemIds": HISTORY}, JSON)

    assert refused.status == 400
    assert answered.said["itemIds"] == ANSWER


async def test_a_body_that_never_ends_is_answered_when_its_deadline_has_passed(serve: Serve) -> None:
    def stall(port: int) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        connection.putrequest("POST", f"/{SERVICE_NAME}/Recommend")
        for name, value in {**JSON, "content-length": "100"}.items():
            connection.putheader(name, value)
        connection.endheaders(b'{"itemIds": [')
        status = connection.getresponse().status
        connection.close()
        return status

    async with serve(web=True, default_timeout_ms=300) as server:
        assert await asyncio.to_thread(stall, server.port) == 504


async def test_a_token_is_asked_for_in_json_as_by_grpc(serve: Serve, tmp_path: Path) -> None:
    token, tokens = new_token(), tmp_path / "tokens.toml"
    tokens.write_text(f'[web]\nsha256 = ["{digest_of(token).hex()}"]\n', encoding="utf-8")
    async with serve(web=True, cors_origins=SHOP, tokens_file=tokens) as server:
        refused = await ask(server.port, "Recommend", {"itemIds": HISTORY}, JSON)
        body = framed(api.RecommendRequest(item_ids=HISTORY).SerializeToString())
        strange = await ask(server.port, "Recommend", body, GRPC_WEB)
        answered = await ask(
            server.port, "Recommend", {"itemIds": HISTORY}, {**JSON, "authorization": f"Bearer {token}"}
        )
        asked = await ask(server.port, "Recommend", b"", preflight(SHOP), "OPTIONS")

    assert (refused.status, refused.said["code"]) == (401, 16)
    assert (strange.status, strange.headers["grpc-status"]) == (200, "16")
    assert answered.said["itemIds"] == ANSWER
    assert asked.status == 200, "a browser asks without the token whether it may bring one"


async def test_grpc_web_has_the_reply_and_then_the_status_in_the_body(port: int) -> None:
    body = framed(api.RecommendRequest(item_ids=HISTORY).SerializeToString())
    answer = await ask(port, "Recommend", body, {**GRPC_WEB, "x-request-id": "mine"})

    size = 5 + int.from_bytes(answer.body[1:5], "big")
    assert list(reply_of(answer).item_ids) == ANSWER
    assert answer.body[size] == 0x80, "the flag of trailers"
    trailers = dict(line.split(":", 1) for line in answer.body[size + 5 :].decode().split("\r\n") if line)
    assert trailers == {"grpc-status": "0", "x-request-id": "mine"}
    assert answer.headers["content-type"] == GRPC_WEB["content-type"]


def reply_of(answer: Answer) -> api.RecommendResponse:
    """The reply in the body of an answer by gRPC-Web."""
    frames = Frames(1 << 20)
    frames.feed(answer.body[: 5 + int.from_bytes(answer.body[1:5], "big")])
    return api.RecommendResponse.FromString(frames.next() or b"")


async def test_types_and_times_of_a_history_come_by_json_and_by_grpc_web(serve: Serve, tmp_path: Path) -> None:
    table = np.random.default_rng(3).normal(0, 2, (3, 8)).astype(np.float32)
    model = write_version(tmp_path / "shop" / "1", 1, types=table, type_keys=["view", "cart"], timed=True)
    history, times = [1, 2], [5, 9_000_000_000_000]
    best, _ = brute_force(embeddings_of(1), history, 5, of_types=table[[2, 1]], times=times)
    named = api.RecommendRequest(item_ids=history, history_type_ids=[2, 1], history_times=times)
    asked = {"itemIds": history, "historyTypeKeys": ["cart", "view"], "historyTimes": [str(time) for time in times]}
    async with serve(model=f"{model.parent}@1", num_recommendations=5, web=True, cors_origins=SHOP) as server:
        by_json = await ask(server.port, "Recommend", asked, JSON)
        by_web = await ask(server.port, "Recommend", framed(named.SerializeToString()), GRPC_WEB)
        refused = await ask(server.port, "Recommend", {**asked, "historyTimes": [-1, 5]}, JSON)

    assert by_json.said["itemIds"] == list(reply_of(by_web).item_ids) == best
    assert refused.status == 400
    assert "history_times[0]: must be greater than or equal to 0" in refused.said["message"]


async def test_features_come_by_json_and_by_grpc_web(serve: Serve, tmp_path: Path) -> None:
    users = np.random.default_rng(3).normal(0, 1, (7, 8)).astype(np.float32)
    model = write_version(tmp_path / "shop" / "1", 1, users=users, featured=True)
    given = {"age": 64.0, "city": "köln", "level": 2, "premium": True, "tastes": [0.5, -2.0]}
    best, _ = brute_force(embeddings_of(1), [1, 2], 5, users[3] + vector_of(given))
    named = api.RecommendRequest(item_ids=[1, 2], user_id=3)
    for name, value in given.items():
        named.features[name].CopyFrom(feature_value(value))  # type: ignore[arg-type]
    features = {
        "age": {"doubleValue": 64},
        "city": {"stringValue": "köln"},
        "level": {"int64Value": "2"},
        "premium": {"boolValue": True},
        "tastes": {"doubleList": {"values": [0.5, -2]}},
    }
    asked = {"itemIds": [1, 2], "userId": "3", "features": features}
    async with serve(model=f"{model.parent}@1", num_recommendations=5, web=True, cors_origins=SHOP) as server:
        by_json = await ask(server.port, "Recommend", asked, JSON)
        by_web = await ask(server.port, "Recommend", framed(named.SerializeToString()), GRPC_WEB)
        wrong = {**asked, "features": {"age": {"doubleValue": "NaN"}}}
        refused = await ask(server.port, "Recommend", wrong, JSON)

    assert by_json.said["itemIds"] == list(reply_of(by_web).item_ids) == best
    assert refused.status == 400
    assert refused.said["details"][0]["fieldViolations"][0]["field"] == "features[age].double_value"


async def test_a_filter_its_parameters_boosts_and_bounds_come_by_json_and_by_grpc_web(
    serve: Serve, tmp_path: Path
) -> None:
    model = export_catalogue(tmp_path, 20)
    add_vocabulary(model, [f"item {number}" for number in range(20)])
    rows = [f"item {number},{number}.5,brand {number % 4}" for number in range(20)]
    (tmp_path / "items.csv").write_text("\n".join(["key,price,brand", *rows]))
    wanted = "item.price < params.most && item.brand in params.brands"
    named = api.RecommendRequest(item_ids=[1], filter=wanted)
    for name, value in (("most", 9.0), ("brands", ["brand 1", "brand 2"])):
        named.filter_parameters[name].CopyFrom(feature_value(value))
    given = {"most": {"doubleValue": 9}, "brands": {"stringList": {"values": ["brand 1", "brand 2"]}}}
    asked = {"itemIds": [1], "filter": wanted, "filterParameters": given}
    async with serve(model=model, items=tmp_path / "items.csv", web=True, cors_origins=SHOP) as server:
        by_json = await ask(server.port, "Recommend", asked, JSON)
        by_web = await ask(server.port, "Recommend", framed(named.SerializeToString()), GRPC_WEB)
        refused = await ask(server.port, "Recommend", {**asked, "filter": "item.prize < 1.0"}, JSON)
        lifted = [{"filter": "item.brand == 'brand 2'", "addend": 100}, {"filter": "item.price > 6.0", "factor": 10}]
        ruled = {**asked, "boosts": lifted, "maxPer": [{"attribute": "brand", "n": 1}]}
        named.boosts.add(filter="item.brand == 'brand 2'", addend=100)
        named.boosts.add(filter="item.price > 6.0", factor=10)
        named.max_per.add(attribute="brand", n=1)
        ruled_by_json = await ask(server.port, "Recommend", ruled, JSON)
        ruled_by_web = await ask(server.port, "Recommend", framed(named.SerializeToString()), GRPC_WEB)
        wrong = {**ruled, "maxPer": [{"attribute": "price", "n": 1}]}
        refused_rule = await ask(server.port, "Recommend", wrong, JSON)

    assert sorted(by_json.said["itemIds"]) == sorted(reply_of(by_web).item_ids) == [1, 2, 5, 6]
    assert by_json.said["matchingItems"] == str(reply_of(by_web).matching_items) == "4"
    assert refused.status == 400
    assert refused.said["details"][0]["fieldViolations"][0]["field"] == "filter"
    assert "did you mean 'price'?" in refused.said["message"]
    plain = dict(zip(by_json.said["itemIds"], by_json.said["scores"], strict=True))
    best = [6, max((1, 5), key=lambda item: plain[item])]
    assert ruled_by_json.said["itemIds"] == list(reply_of(ruled_by_web).item_ids) == best
    assert ruled_by_json.said["scores"] == pytest.approx([(plain[6] + 100) * 10, plain[best[1]]], rel=1e-5)
    assert refused_rule.status == 400
    assert refused_rule.said["details"][0]["fieldViolations"][0]["field"] == "max_per[0].attribute"


def preflight(origin: str) -> dict[str, str]:
    """What a browser sends before a page's call."""
    headers = "authorization,baggage,b3,content-type,grpc-timeout,traceparent,tracestate,x-b3-traceid"
    return {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": headers}


@pytest.mark.parametrize(
    ("origin", "may"),
    [(SHOP, True), (LOCAL, True), ("https://evil.example", False), (f"{SHOP}.evil.example", False)],
)
async def test_pages_of_the_origins_that_are_named_may_call_and_no_others(port: int, origin: str, *, may: bool) -> None:
    asked = await ask(port, "Recommend", b"", preflight(origin), "OPTIONS")
    refused = await ask(port, "Recommend", {"itemIds": [-1]}, {**JSON, "origin": origin})

    allowed = [answer.headers.get("access-control-allow-origin") for answer in (asked, refused)]
    assert allowed == [origin if may else None] * 2
    if may:
        assert set(preflight(origin)["access-control-request-headers"].split(",")) <= set(
            asked.headers["access-control-allow-headers"].split(",")
        )


async def test_a_path_that_is_no_method_is_told_the_methods_and_any_other_content_is_taken_for_json(
    port: int,
) -> None:
    nothing = await ask(port, "Nothing", {}, JSON)
    got = await ask(port, "Recommend", b"", JSON, "GET")
    plain = await ask(port, "Recommend", {"itemIds": HISTORY}, {"content-type": "text/plain"})

    assert (nothing.status, got.status) == (404, 404)
    assert nothing.said == got.said
    for method in ("Recommend", "BatchRecommend", "StreamRecommend", "GetModel", "ListModels"):
        assert f"/{SERVICE_NAME}/{method}" in nothing.said["message"]
    assert plain.said["itemIds"] == ANSWER


async def test_a_server_that_does_not_describe_itself_names_no_method(serve: Serve) -> None:
    async with serve(web=True, reflection=False) as server:
        nothing = await ask(server.port, "Nothing", {}, JSON)

    assert (nothing.status, nothing.said["message"]) == (404, "there is no such method here")


async def test_a_history_by_a_wrong_name_is_told_the_right_ones(port: int) -> None:
    empty = await ask(port, "Recommend", {"items": [1]}, JSON)

    assert empty.status == 400
    assert "the request names neither item_ids nor item_keys" in empty.said["message"]


async def test_unless_it_is_asked_for_only_grpc_is_spoken(serve: Serve) -> None:
    async with serve() as server:
        answers = [await ask(server.port, "Recommend", {"itemIds": [1]}, headers) for headers in (JSON, GRPC_WEB)]

    assert [answer.status for answer in answers] == [415, 415]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"web": True}, "RECOMMENDER_WEB=true needs RECOMMENDER_EDGE=envoy"),
        ({"web": True, "cors_origins": SHOP}, "RECOMMENDER_WEB=true needs RECOMMENDER_EDGE=envoy"),
        ({"edge": "envoy", "cors_origins": SHOP}, "RECOMMENDER_CORS_ORIGINS needs RECOMMENDER_WEB=true"),
        *(
            ({"edge": "envoy", "web": True, "cors_origins": origins}, "not an origin as browsers send it")
            for origins in ("*", "shop.example", f"{SHOP}/", f"{SHOP}/page", "https://Shop.example", f"{SHOP},null")
        ),
    ],
)
def test_what_could_not_be_held_is_refused_with_a_sentence(settings: dict[str, object], why: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(why)):
        Settings.model_validate(settings)


@contextmanager
def page_server(page: list[str]) -> Iterator[int]:
    """Serves the first of `page` at any path, from a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page[0].encode())

        def log_message(self, *_: object) -> None:
            """Do nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def opened_in_chromium(url: str, profile: Path) -> str:
    """What the page says in the end."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}")
    wait = ("--virtual-time-budget=10000", "--dump-dom")
    done = subprocess.run(["chromium", *options, *wait, url], capture_output=True, text=True, check=True, timeout=100)
    (shown,) = re.findall(r'<p id="next">(.*?)</p>', done.stdout)
    return str(shown)


@pytest.mark.system("chromium")
async def test_a_browser_shows_the_page_of_the_documents_to_whose_origin_may_call(serve: Serve, tmp_path: Path) -> None:
    (documented,) = re.findall(r"```html\n(.*?)```", (ROOT / "docs/browsers.md").read_text(encoding="utf-8"), re.DOTALL)
    page = [""]
    with page_server(page) as port:
        async with serve(web=True, cors_origins=f"http://127.0.0.1:{port}") as server:
            assert "127.0.0.1:50051" in documented
            page[0] = documented.replace("127.0.0.1:50051", f"127.0.0.1:{server.port}")
            shown = await asyncio.to_thread(opened_in_chromium, f"http://127.0.0.1:{port}/", tmp_path / "may")
            other = await asyncio.to_thread(opened_in_chromium, f"http://localhost:{port}/", tmp_path / "other")
            expected = await ask(server.port, "Recommend", {"itemIds": [12, 7, 42], "limit": 3}, JSON)

    assert shown.split() == [str(item) for item in expected.said["itemIds"]]
    assert other == "TypeError: Failed to fetch"
