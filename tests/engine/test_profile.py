"""What `recommender profile` measures, shows and recommends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from recommender.cli.chart import Series, line_chart
from recommender.engine import profile
from recommender.engine.profile import Point, advise
from tests.support import models

SVG = "{http://www.w3.org/2000/svg}"


def point(threads: int, rows: int, ms: float, history: int = 20) -> Point:
    return Point(threads, rows, history, (ms / 1e3,) * 100)


def test_quantiles_are_durations_that_were_measured() -> None:
    seen = Point(1, 10, 1, tuple(range(1, 101)))
    assert (seen.quantile(0.5), seen.quantile(0.99), seen.quantile(1.0)) == (50, 99, 100)
    assert seen.throughput == 10 / 50
    assert Point(1, 1, 1, (3.0,)).quantile(0.99) == 3.0


def test_the_largest_batch_within_half_of_the_objective_is_recommended() -> None:
    points = [point(1, 1, 1), point(1, 8, 3), point(1, 64, 10), point(1, 128, 30)]
    advice = advise(points, objective=0.020, history=20)
    assert advice.point == points[2]
    assert "RECOMMENDER_MAX_BATCH_SIZE=64" in advice.lines
    assert "RECOMMENDER_THREADS=1" in advice.lines
    assert "RECOMMENDER_MAX_BACKLOG=64" in advice.lines


def test_the_backlog_is_what_can_still_be_answered_in_time() -> None:
    advice = advise([point(1, 8, 2)], objective=0.020, history=20)
    assert f"RECOMMENDER_MAX_BACKLOG={int(8 / 0.002 * 0.018)}" in advice.lines


def test_threads_that_bring_next_to_nothing_are_left_to_others() -> None:
    points = [point(1, 64, 10), point(2, 64, 9.9)]
    assert advise(points, objective=1, history=20).point == points[0]
    points = [point(1, 64, 10), point(2, 64, 6)]
    assert advise(points, objective=1, history=20).point == points[1]


def test_other_histories_do_not_count() -> None:
    points = [point(1, 64, 1, history=1), point(1, 64, 100, history=200), point(1, 1, 2, history=200)]
    assert advise(points, objective=0.010, history=200).point == points[2]


def test_an_objective_that_nothing_holds_is_answered_with_the_least_that_would_be() -> None:
    advice = advise([point(1, 1, 7), point(1, 8, 20)], objective=0.010, history=20)
    assert advice.point is None
    text = "\n".join(advice.lines)
    assert "14 ms" in text
    assert all(line.startswith("#") for line in advice.lines)


def test_thread_counts_double_up_to_all_cpus() -> None:
    assert list(profile.thread_counts(1)) == [1]
    assert list(profile.thread_counts(2)) == [1, 2]
    assert list(profile.thread_counts(6)) == [1, 2, 4, 6]


@pytest.mark.parametrize("lines", [[Series("a <b> & c", [(1, 0.5)])], [Series("x", [(1, 3), (64, 700.5)])] * 7])
def test_charts_are_well_formed_and_draw_every_point_inside(lines: list[Series]) -> None:
    chart = ET.fromstring(line_chart("A & B", "size", lines, ("limit", 1.0)))  # noqa: S314 (our own)
    dots = chart.findall(f"{SVG}circle")
    assert len(dots) == sum(len(line.points) for line in lines)
    _, _, width, height = map(float, chart.attrib["viewBox"].split())
    assert all(0 < float(dot.attrib["cx"]) < width and 0 < float(dot.attrib["cy"]) < height for dot in dots)
    assert len({dot.attrib["cy"] for dot in dots}) == len({y for line in lines for _, y in line.points})


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recommender", "profile", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_measures_recommends_and_writes_the_page(tmp_path: Path) -> None:
    metadata = {"recommender.items": "50"}
    models.batched(tmp_path / "10_model.onnx", models.table(), metadata=metadata, k=10)
    done = run(
        tmp_path, "10_model.onnx", "--batches", "1,8", "--histories", "1,5", "--threads", "1",
        "--seconds", "0", "--p99-ms", "60000", "--output", "page.html",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rows a second" in done.stdout
    assert "RECOMMENDER_MAX_BATCH_SIZE=" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert page.count("<tr>") == 1 + 4
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_a_model_that_is_not_there_and_a_list_that_is_none_are_sentences(tmp_path: Path) -> None:
    missing = run(tmp_path, "none.onnx")
    assert missing.returncode == 2
    assert "there is no model file none.onnx" in missing.stderr
    wrong = run(tmp_path, "none.onnx", "--batches", "1,many")
    assert wrong.returncode == 2
    assert "is not a list of whole numbers" in wrong.stderr.replace("\n", " ")
    assert "Traceback" not in missing.stderr + wrong.stderr
