"""What a scrape says of a server, against what the server did."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from cryptography import x509
from h2.connection import H2Connection
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from recommender.client import Client
from recommender.client import Request as ClientRequest
from recommender.errors import StartError
from recommender.observability import instruments as telemetry
from recommender.security.access import digest_of, new_token
from recommender.settings.network import Edge
from tests.support.catalogues import add_fallback, export_catalogue
from tests.support.certificates import Authority
from tests.support.models import table, write_model
from tests.support.paths import ROOT
from tests.support.process import running
from tests.support.serving import AnyServer, Serve

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
METHOD = "recommend_api.v1.RecommenderService/"
MANY = 30
"""So many calls that those at the end still wait when a slow machine has seen that they are there."""


class Scrape(dict[str, list[tuple[dict[str, str], float]]]):
    """Every sample of a scrape by its name."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self.documented = {}
        for family in families:
            self.documented[family.name] = (family.type, family.documentation)
            for sample in family.samples:
                self.setdefault(sample.name, []).append((sample.labels, sample.value))

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name that have these labels."""
        found = [value for has, value in self[name] if labels.items() <= has.items()]
        assert found, (name, labels, self[name])
        return sum(found)


async def scrape(server: AnyServer) -> Scrape:
    return await scrape_port(server.metrics_port)


async def scrape_port(port: int) -> Scrape:
    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT) as page:
            return str(page.read().decode())

    return Scrape(text_string_to_metric_families(await asyncio.to_thread(read)))


async def test_a_scrape_counts_calls_by_method_and_status_and_requests_by_outcome(serve: Serve) -> None:
    async with serve(metrics_port=0) as server, Client(f"127.0.0.1:{server.port}") as client:
        await asyncio.gather(*(client.recommend([row], timeout=TIMEOUT) for row in range(40)))
        await client.recommend_many([ClientRequest(item_ids=[1, 2, 3]), ClientRequest(item_ids=[1])], timeout=TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.recommend([-1], timeout=TIMEOUT)
        seen = await scrape(server)

    calls = "rpc_server_call_duration_seconds_count"
    assert seen.value(calls, rpc_method=f"{METHOD}Recommend", rpc_response_status_code="OK") == 40
    assert seen.value(calls, rpc_method=f"{METHOD}Recommend", rpc_response_status_code="INVALID_ARGUMENT") == 1
    assert seen.value(calls, rpc_method=f"{METHOD}BatchRecommend", rpc_response_status_code="OK") == 1
    assert seen.value(calls, rpc_system_name="grpc") == 42
    assert seen.value("rpc_server_call_duration_seconds_bucket", rpc_method=f"{METHOD}Recommend", le="+Inf") == 41

    model = {"recommender_model": "reference@1"}
    assert seen.value("recommender_requests_total", recommender_outcome="answered", **model) == 42
    assert seen.value("recommender_requests_total", **model) == 42
    assert seen.value("recommender_queue_time_seconds_count", **model) == 42
    assert seen.value("recommender_batch_size_sum", **model) == 42
    runs = seen.value("recommender_batch_size_count", **model)
    assert seen.value("recommender_inference_time_seconds_count", **model) == runs
    assert seen.value("recommender_batches_total", **model) == runs
    # The two rows of the call of many share their batch, where the shorter has two cells of padding.
    assert seen.value("recommender_cells_padded_total", **model) == 2
    assert seen.value("recommender_backlog_limit", **model) == 1024
    assert seen.value("recommender_model_info", recommender_execution_provider="CPUExecutionProvider", **model) == 1
    assert seen.value("process_memory_usage_bytes") > 1e7
    assert seen.value("process_cpu_time_seconds_total", cpu_mode="user") > 0


async def test_calls_of_methods_that_are_not_here_are_counted_together(serve: Serve) -> None:
    async with serve(metrics_port=0) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        before = await scrape(server)
        for path in (*(f"/{METHOD}No{number}" for number in range(5)), "/no.Service/Recommend"):
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                await ask(b"", timeout=TIMEOUT)
        after = await scrape(server)

    counted = "rpc_server_call_duration_seconds"
    others = {"rpc_method": "_OTHER", "rpc_response_status_code": "UNIMPLEMENTED"}
    assert after.value(f"{counted}_count") == after.value(f"{counted}_count", **others) == 6
    assert {name: len(samples) for name, samples in after.items() if not name.startswith(counted)} == {
        name: len(samples) for name, samples in before.items() if not name.startswith(counted)
    }


async def test_callers_who_leave_are_counted_by_their_status(serve: Serve, tmp_path: Path) -> None:
    slow = write_model(tmp_path / "5_model.onnx", table(), burn=60)
    settings = {"model": slow, "num_recommendations": 5, "max_batch_size": 1, "metrics_port": 0}
    async with serve(**settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        await client.recommend([1], timeout=TIMEOUT)
        calls = [asyncio.create_task(client.recommend([1], timeout=TIMEOUT)) for _ in range(MANY)]
        while (await arrived(server)) < 1 + MANY:
            pass
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        while (seen := await scrape(server)).value("rpc_server_call_duration_seconds_count") < 1 + MANY:
            pass
        statistics = server.batcher.statistics()

    assert statistics.cancelled > 0
    assert seen.value("recommender_requests_total", recommender_outcome="cancelled") == statistics.cancelled
    assert seen.value("rpc_server_call_duration_seconds_count", rpc_response_status_code="CANCELLED") > 0


async def test_fallbacks_are_counted(serve: Serve, tmp_path: Path) -> None:
    model = export_catalogue(tmp_path, 20)
    add_fallback(model, [7, 3])
    async with serve(model=model, metrics_port=0) as server, Client(f"127.0.0.1:{server.port}") as client:
        answer = await client.recommend([], timeout=TIMEOUT)
        seen = await scrape(server)

    assert answer.is_fallback
    assert seen.value("recommender_fallbacks_total") == 1
    assert seen.value("recommender_requests_total") == 0


@pytest.mark.parametrize("edge", ["envoy"])
async def test_behind_envoy_connections_are_counted_and_the_calls_that_were_lost_with_them(
    serve: Serve, tmp_path: Path
) -> None:
    slow = write_model(tmp_path / "5_model.onnx", table(), burn=60)
    settings = {"model": slow, "num_recommendations": 5, "max_batch_size": 1, "metrics_port": 0}
    opened, still = "recommender_connections_opened_total", "recommender_connections_open"
    cut, lost = "recommender_connections_cut_total", "recommender_calls_reset_total"
    async with serve(**settings) as server:
        before = await scrape(server)
        async with Client(f"127.0.0.1:{server.port}") as client:
            await client.recommend([1], timeout=TIMEOUT)
            connected = await scrape(server)
            calls = [asyncio.create_task(client.recommend([1], timeout=TIMEOUT)) for _ in range(MANY)]
            while (await arrived(server)) < 1 + MANY:
                pass
            calls[-1].cancel()
            while (cancelled := await scrape(server)).value(lost, recommender_side="client") < 1:
                pass
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            await asyncio.to_thread(begin_a_call_and_hang_up, server.port)
            while (hung_up := await scrape(server)).value(cut, recommender_side="client") < 1:
                pass
            while (await scrape(server)).value(still) > connected.value(still):
                pass

    assert connected.value(opened) == before.value(opened) + 1
    assert connected.value(still) == before.value(still) + 1
    assert connected.value(lost) == connected.value(cut) == 0
    assert cancelled.value(lost) == 1
    assert cancelled.value(cut) == 0, "a call was cancelled, its connection went on"
    assert hung_up.value(opened) == before.value(opened) + 2
    assert hung_up.value(cut) == 1


async def arrived(server: AnyServer) -> float:
    """The number of requests that have reached the batcher, with any outcome."""
    seen = await scrape(server)
    return sum(seen.value(f"recommender_{name}") for name in ("backlog_length", "running", "requests_total"))


def begin_a_call_and_hang_up(port: int) -> None:
    """Send the head of a call, wait for a sign that it has come, and leave."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as line:
        connection = H2Connection()
        connection.initiate_connection()
        head = {":method": "POST", ":scheme": "http", ":authority": "here", ":path": f"/{METHOD}Recommend"}
        connection.send_headers(1, [*head.items(), ("content-type", "application/grpc"), ("te", "trailers")])
        connection.ping(b"has come")
        line.sendall(connection.data_to_send())
        while not any(type(event).__name__ == "PingAckReceived" for event in connection.receive_data(line.recv(4096))):
            pass


async def test_an_envoy_that_does_not_tell_leaves_its_own_metrics_out_and_no_others(tmp_path: Path) -> None:
    settings = {"RECOMMENDER_EDGE": "envoy", "RECOMMENDER_METRICS_PORT": "0", "TMPDIR": str(tmp_path)}
    async with running(settings=settings) as server:
        (port,) = (urlsplit(event["address"]).port for event in server.log if event["event"] == "metrics")
        (admin,) = await asyncio.to_thread(lambda: list(tmp_path.glob("recommender-*/admin")))
        told = await scrape_port(port)
        admin.unlink()
        gone = await scrape_port(port)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(admin))
            silent.listen()
            hung = await scrape_port(port)

    assert told.value("recommender_connections_opened_total") == 0
    for seen in (gone, hung):
        assert seen.value("process_uptime_seconds") > 0
        assert "recommender_connections_opened_total" not in seen


async def test_a_scrape_tells_when_the_certificates_in_use_expire(serve: Serve, tmp_path: Path) -> None:
    authority, name = Authority(), "recommender_certificate_expiry_seconds"
    soon, later = (datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) for days in (3, 30))
    files = authority.write_server(tmp_path, expires=soon)
    clients = authority.write_pem(tmp_path / "clients.pem")
    async with serve(**files, tls_client_ca=clients, metrics_port=0, secrets_reload_ms=20) as server:
        seen = await scrape(server)
        of_clients = seen.value(name, recommender_file_path=str(clients))
        authority.write_server(tmp_path, expires=later)
        async with asyncio.timeout(TIMEOUT):
            while (await scrape(server)).value(name, recommender_file_path=str(files["tls_certificate"])) != (
                later.timestamp()
            ):
                pass

    assert seen.value(name, recommender_file_path=str(files["tls_certificate"])) == soon.timestamp()
    assert of_clients == x509.load_pem_x509_certificate(authority.pem).not_valid_after_utc.timestamp()
    assert len(seen[name]) == 2


async def test_files_that_cannot_be_taken_up_are_stale_until_they_are_mended(serve: Serve, tmp_path: Path) -> None:
    tokens, good = tmp_path / "tokens.toml", f'[web]\nsha256 = ["{digest_of(new_token()).hex()}"]\n'
    tokens.write_text(good, encoding="utf-8")
    settings = {**Authority().write_server(tmp_path), "tokens_file": tokens}
    async with serve(**settings, metrics_port=0, secrets_reload_ms=20) as server:

        async def stale() -> dict[str, float]:
            return {
                has["recommender_file_kind"]: value for has, value in (await scrape(server))["recommender_files_stale"]
            }

        async def become(value: float) -> None:
            async with asyncio.timeout(TIMEOUT):
                while (await stale())["tokens"] != value:
                    pass

        at_first = await stale()
        tokens.write_text("no TOML", encoding="utf-8")
        await become(1)
        certificates = (await stale())["certificates"]
        tokens.write_text(good, encoding="utf-8")
        await become(0)

    assert at_first == {"certificates": 0, "tokens": 0}
    assert certificates == 0


async def test_the_page_of_metrics_lists_every_instrument_as_it_is_served(
    serve: Serve,
    tmp_path: Path,
    edge: Edge,
) -> None:
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8").splitlines()
    token, tokens = new_token(), tmp_path / "tokens.toml"
    tokens.write_text(f'[web]\nsha256 = ["{digest_of(token).hex()}"]\n', encoding="utf-8")
    authority = Authority()
    credentials = grpc.ssl_channel_credentials(authority.pem)
    table = tmp_path / "items.csv"
    table.write_text("key,price\nshoe,1.5\n", encoding="utf-8")
    catalogue = {"items": table, "catalogue_journal": tmp_path / "journal.sqlite"}
    async with serve(**authority.write_server(tmp_path), **catalogue, metrics_port=0, tokens_file=tokens) as server:
        async with Client(f"127.0.0.1:{server.port}", credentials=credentials, token=token) as client:
            await client.recommend([1], timeout=TIMEOUT)
        async with Client(f"127.0.0.1:{server.port}", credentials=credentials) as stranger:
            with pytest.raises(grpc.aio.AioRpcError):
                await stranger.recommend([1], timeout=TIMEOUT)
        seen = await scrape(server)

    rows = [
        f"| `{each.name}` | `{each.prometheus_name}` | {each.kind} | {each.unit} | "
        f"{', '.join(f'`{name}`' for name in each.attributes)} | {each.meaning} |"
        for each in telemetry.INSTRUMENTS
    ]
    assert [row for row in rows if row not in page] == [], "put these rows into the table of docs/observability.md"
    listed = [line for line in page if line.startswith(("| `recommender.", "| `rpc.", "| `process."))]
    assert sorted(listed) == sorted(rows)
    for each in telemetry.INSTRUMENTS:
        kind, meaning = seen.documented[each.prometheus_name.removesuffix("_total")]
        assert kind == ("gauge" if each.kind == "updowncounter" else each.kind)
        assert meaning == f"{each.meaning}."
        suffix = "_count" if each.kind == "histogram" else ""
        if edge == "grpc" and each in telemetry.OF_ENVOY:
            assert each.prometheus_name not in seen, f"{each.name} is Envoy's to tell"
            continue
        assert seen[each.prometheus_name + suffix], f"{each.name} has no sample"
        labels, _ = seen[each.prometheus_name + suffix][0]
        assert set(labels) == {name.replace(".", "_") for name in each.attributes}


async def test_a_metrics_port_in_use_stops_the_start_with_a_sentence(serve: Serve) -> None:
    async with serve(metrics_port=0) as server:
        with pytest.raises(StartError, match=r"RECOMMENDER_METRICS_PORT"):
            async with serve(metrics_port=server.metrics_port):
                pass


async def test_without_a_metrics_port_nothing_is_served_nor_started(server: AnyServer) -> None:
    assert server.metrics_port == 0
    assert not [task for task in asyncio.all_tasks() if "watch_loop" in repr(task)]
