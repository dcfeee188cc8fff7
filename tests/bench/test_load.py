"""`just bench` counts outcomes, times requests from when they were due, and reports both."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench.load import report
from bench.load.generator import arrivals
from bench.load.plan import GOOD, HURRIED, LEAVING, SLOW, Method, Phase, Plan
from bench.load.run import Run, run
from recommender.server.server import Server
from tests.support.paths import ROOT
from tests.support.serving import ServeHere

STEADY = (Phase(1.0, 200.0, 200.0),)


def target(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


async def ran(plan: Plan, generator: str = "own") -> Run:
    return await asyncio.wait_for(asyncio.to_thread(run, plan, generator=generator), 90)


@pytest.mark.parametrize(("method", "rows"), [("unary", 1), ("batch", 8), ("stream", 1)])
async def test_the_server_counts_what_the_generator_counts(server: Server, method: Method, rows: int) -> None:
    done = await ran(Plan(target(server), STEADY, method, rows=8))

    assert done.statuses() == {"OK": 200}
    assert done.outcomes.row_errors == 0
    assert server.batcher.statistics().answered == 200 * rows


async def test_a_batch_call_with_a_history_that_is_refused_has_failed(serve: ServeHere) -> None:
    async with serve(max_backlog=64) as server:
        done = await ran(Plan(target(server), (Phase(1.0, in_flight=16),), "batch", rows=64))

    assert "RESOURCE_EXHAUSTED" in done.statuses()
    assert done.outcomes.row_errors > 0


async def test_k6_sends_what_the_generator_of_ours_sends(server: Server) -> None:
    done = await ran(Plan(target(server), STEADY), "k6")

    ended = done.statuses()
    # k6 drops requests without a virtual user; the report counts them.
    assert ended["OK"] + ended.get("no answer", 0) == pytest.approx(200, abs=5)
    assert server.batcher.statistics().answered == ended["OK"]


async def test_a_closed_loop_has_never_more_under_way_than_it_was_told(server: Server) -> None:
    done = await ran(Plan(target(server), (Phase(1.0, in_flight=5),)))

    sent, ended = done.outcomes.sent, done.outcomes.done
    under_way = [int(((sent <= at) & (ended > at)).sum()) for at in sent]
    assert max(under_way) <= 5
    assert set(done.statuses()) == {"OK"}


async def test_who_was_due_while_the_server_stood_still_is_timed_from_then(server: Server) -> None:
    running = asyncio.create_task(ran(Plan(target(server), (Phase(2.0, 100.0, 100.0),))))
    while server.batcher.statistics().answered < 30:  # noqa: ASYNC110 (until the load is there)
        await asyncio.sleep(0.01)
    begun = time.monotonic()
    time.sleep(0.5)  # noqa: ASYNC251 (the loop stalls on purpose)
    ended = time.monotonic()
    done = await running

    out = done.outcomes
    due = (out.intended + out.began > begun + 0.05) & (out.intended + out.began < ended)
    assert due.sum() > 20
    # Requests that were due during the stall must not look as if the server had answered then.
    assert (out.done[due] + out.began >= ended).all()
    assert set(done.statuses()) == {"OK"}


async def test_callers_who_leave_or_hurry_are_told_from_the_rest(serve: ServeHere) -> None:
    async with serve() as server:
        plan = Plan(target(server), STEADY, leaving=0.3, leave_ms=0.01, hurried=0.3, hurry_ms=1000)
        done = await ran(plan)

    out = done.outcomes
    assert {int(kind) for kind in out.kind} == {GOOD, LEAVING, HURRIED}
    assert (out.status[out.kind == GOOD] == 0).all()
    assert (out.status[out.kind == HURRIED] == 0).all()
    assert (out.status[out.kind == LEAVING] == 1).any()


async def test_slow_readers_get_no_byte_until_the_others_are_done(server: Server) -> None:
    done = await ran(Plan(target(server), STEADY, slow=2, slow_calls=10, timeout=0.5))

    out = done.outcomes
    slow = out.kind == SLOW
    assert slow.sum() == 20
    assert (out.status == 0).all()
    assert out.done[slow].min() >= out.done[~slow].max()


async def test_a_server_that_goes_away_is_told_as_unavailable(serve: ServeHere) -> None:
    async with serve() as server:
        running = asyncio.create_task(ran(Plan(target(server), (Phase(2.0, 100.0, 100.0),))))
        while server.batcher.statistics().answered < 30:  # noqa: ASYNC110 (until the load is there)
            await asyncio.sleep(0.01)
    done = await running

    assert {"OK", "UNAVAILABLE"} <= set(done.statuses()) <= {"OK", "UNAVAILABLE", "CANCELLED"}
    assert len(done.outcomes.status) == 200


@pytest.mark.parametrize("kind", ["even", "poisson"])
def test_a_ramp_offers_the_area_under_it(kind: str) -> None:
    plan = Plan("", (Phase(10.0, 100.0, 300.0), Phase(10.0, 300.0, 300.0)), arrivals=kind)  # type: ignore[arg-type]
    due = arrivals(plan)

    assert len(due) == pytest.approx(5000, rel=0.05)
    assert (np.diff(due) >= 0).all()
    assert ((due >= 0) & (due < 20)).all()
    assert ((due >= 5) & (due < 10)).sum() == pytest.approx(1250, rel=0.1)


async def test_the_report_stands_alone(server: Server) -> None:
    done = await ran(Plan(target(server), (Phase(1.0, 50.0, 50.0), Phase(1.0, 100.0, 100.0))))

    page = report.html(done, title="A <title>", facts={"revision": "abc"}, checks=[("p99", True), ("errors", False)])

    assert page.count("<svg") == 6
    assert "A &lt;title&gt;" in page
    assert "held: p99" in page
    assert "missed: errors" in page
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)  # nothing is loaded from elsewhere


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--p99-ms", "60000", "--error-rate", "0"], 0, "held: 50/s"),
        (["--p99-ms", "0.001"], 1, "missed: 50/s"),
        (["--in-flight", "4"], 2, "give one of them"),
        (["--histories", "README.md"], 2, "README.md, line 1: a history is item ids"),
    ],
)
async def test_thresholds_set_the_exit_code(
    server: Server, tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.load", "--target", target(server), "--rate", "50", "--seconds", "1",
        "--report", str(tmp_path / "report.html"), *options,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip

    out, _ = await asyncio.wait_for(process.communicate(), 90)

    assert said in out.decode()
    assert process.returncode == code
    assert (tmp_path / "report.html").exists() == (code < 2)
