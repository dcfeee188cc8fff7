"""`recommender top`: its picture of a running server, and its messages without one."""

from __future__ import annotations

import asyncio
import io
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from recommender.cli.clients.top import Screen
from recommender.client import Client
from recommender.histogram import LATENCY_BOUNDS
from recommender.observability import instruments as telemetry
from recommender.observability.scraping import Change, Labels, NoMetricsError, Scrape, parse, scrape
from tests.support.serving import Serve

TIMEOUT = 30.0


def shown(picture: RenderableType, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(picture)
    return console.export_text()


def queue_times(at: float, *up_to: int) -> Scrape:
    """A scrape of nothing but queue times: how many up to 0.1 ms, 0.2 ms, 0.3 ms …"""
    name = telemetry.QUEUE_TIME.prometheus_name
    counts: Sequence[int] = (*up_to, *[up_to[-1]] * (len(LATENCY_BOUNDS) + 1 - len(up_to)))
    ends = (*(str(bound) for bound in LATENCY_BOUNDS), "+Inf")
    buckets: dict[Labels, float] = {(("le", end),): float(count) for end, count in zip(ends, counts, strict=True)}
    count: dict[Labels, float] = {(): float(up_to[-1])}
    return Scrape(at, {f"{name}_bucket": buckets, f"{name}_count": count})


async def test_it_shows_what_happened_between_two_looks(serve: Serve) -> None:
    async with serve(metrics_port=0) as server, Client(f"127.0.0.1:{server.port}") as client:
        url = f"http://127.0.0.1:{server.metrics_port}/metrics"
        before = await asyncio.to_thread(scrape, url)
        await asyncio.gather(*(client.recommend([1, 2], timeout=TIMEOUT) for _ in range(64)))
        after = await asyncio.to_thread(scrape, url)
    change = Change(before, after)
    text = shown(Screen(url).draw(change))

    assert change.rate(telemetry.CALL_DURATION, "_count") * change.seconds == pytest.approx(64)
    assert sum(rate for _, rate in change.buckets(telemetry.BATCH_SIZES)) * change.seconds >= 1
    assert 0 < change.quantile(0.5, telemetry.QUEUE_TIME) <= change.quantile(0.99, telemetry.QUEUE_TIME)
    for word in ("reference@1", "CPUExecutionProvider", url, "Recommend", "OK", "whole call", "0 of 1,024"):
        assert word in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_panels_stand_side_by_side_and_a_call_in_half_a_minute_is_a_rate(width: int) -> None:
    name = telemetry.CALL_DURATION.prometheus_name
    method, status = (each.replace(".", "_") for each in (telemetry.RPC_METHOD, telemetry.RPC_STATUS))
    call: Labels = ((method, "recommend_api.v1.RecommenderService/StreamRecommend"), (status, "RESOURCE_EXHAUSTED"))
    counts = [{name + "_count": {call: count}} for count in (4.0, 5.0)]
    text = shown(Screen("http://there").draw(Change(Scrape(0.0, counts[0]), Scrape(30.0, counts[1]))), width)
    lines = text.splitlines()

    assert max(map(len, lines)) <= width
    assert sum("calls" in line and "batches" in line for line in lines) == 1
    for word in ("StreamRecommend", "RESOURCE_EXHAUSTED", " 0.03 ", "whole call", "memory"):
        assert word in text
    assert ("p95" in text) == (width > 80)


def test_quantiles_are_even_within_a_bucket_and_count_what_is_new() -> None:
    change = Change(queue_times(0.0, 50, 50), queue_times(2.0, 50, 150))

    assert change.quantile(0.5, telemetry.QUEUE_TIME) == pytest.approx(0.00015)
    assert change.quantile(1.0, telemetry.QUEUE_TIME) == pytest.approx(0.0002)
    assert change.rate(telemetry.QUEUE_TIME, "_count") == 50


def test_where_nothing_happened_there_is_no_quantile_and_a_restart_counts_from_zero() -> None:
    same = queue_times(0.0, 5)

    assert math.isnan(Change(same, same).quantile(0.5, telemetry.QUEUE_TIME))
    assert Change(queue_times(0.0, 50), queue_times(1.0, 10)).rate(telemetry.QUEUE_TIME, "_count") == 10


@pytest.mark.parametrize("text", ["<html>", "# HELP up\nup 1\n"])
def test_what_is_not_ours_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(NoMetricsError, match=r"http://there"):
        parse(text, 0.0, "http://there")


async def test_the_command_draws_and_saves_a_picture(serve: Serve, tmp_path: Path) -> None:
    picture = tmp_path / "top.svg"
    async with serve(metrics_port=0) as server:
        url = f"http://127.0.0.1:{server.metrics_port}/metrics"
        done = await asyncio.to_thread(top, "--url", url, "--interval", "0.1", "--looks", "2", "--svg", str(picture))

    assert done.returncode == 0, done.stderr
    assert "reference@1" in done.stdout
    svg = picture.read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert 'src: local("FiraCode-Regular");' in svg
    assert "url(http" not in svg.replace('"', "")


async def test_a_port_of_grpc_is_a_sentence(serve: Serve) -> None:
    async with serve() as server:
        done = await asyncio.to_thread(top, "--url", f"http://127.0.0.1:{server.port}/metrics")

    assert done.returncode == 1
    assert "answers, but not with metrics" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_picture_that_cannot_be_written_is_a_sentence(serve: Serve, tmp_path: Path) -> None:
    async with serve(metrics_port=0) as server:
        words = ("--url", f"http://127.0.0.1:{server.metrics_port}/metrics", "--interval", "0.1", "--looks", "1")
        done = await asyncio.to_thread(top, *words, "--svg", str(tmp_path / "none" / "top.svg"))

    assert done.returncode == 2
    assert done.stderr == f"recommender: {tmp_path / 'none' / 'top.svg'}: No such file or directory\n"


def test_without_a_server_it_says_what_to_do() -> None:
    done = top("--url", "http://127.0.0.1:1/metrics")

    assert done.returncode == 1
    assert "RECOMMENDER_METRICS_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def top(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recommender", "top", *options],
        env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True, check=False, timeout=TIMEOUT,
    )  # fmt: skip
